"""Image sides that keep positions, and texts that read them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsyn.config import PolicySection
from medsyn.models.text_gate import GRID, ConvGrid, Places, TextGate, ViTGrid

SECTION = PolicySection(image_size=32, patch_size=4, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=32)


@pytest.mark.parametrize("kind", [ConvGrid, ViTGrid])
@pytest.mark.parametrize("size", [32, 48, 96])
def test_what_is_on_the_left_is_on_the_left_of_the_grid(kind: type[ConvGrid | ViTGrid], size: int) -> None:
    pixels = torch.zeros(2, 3, size, size)
    pixels[1, :, : size // 8, : size // 8] = 1
    change = torch.zeros(GRID, GRID)  # a little everywhere, by normalisation
    for number in range(4):
        torch.manual_seed(number)
        grid = kind(SECTION.model_copy(update={"image_size": size}))
        with torch.no_grad():
            seen = grid(pixels)
        assert seen.shape == (2, GRID * GRID, grid.width)
        change += (seen[1] - seen[0]).abs().sum(dim=1).view(GRID, GRID)
    assert change[0, 0] > 1.2 * change[:, -1].max()


def test_a_text_looks_where_it_says() -> None:
    """A blob in one of four corners, under texts that name a corner."""
    torch.manual_seed(0)
    corners, texts = torch.tensor([0, GRID - 1, GRID * (GRID - 1), GRID * GRID - 1]), torch.randn(4, 6)
    where, said = torch.arange(64) % 4, torch.arange(64) // 4 % 4

    def images() -> Tensor:
        seen = 0.3 * torch.randn(64, GRID * GRID, 8)
        seen[torch.arange(64), corners[where], 2] += 2
        return seen

    places, gate, head = Places(8), TextGate(6, 16), nn.Linear(16, 1)
    optimizer = torch.optim.AdamW([*places.parameters(), *gate.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        logits = head(gate(places(images()), texts[said])).squeeze(1)
        functional.binary_cross_entropy_with_logits(logits, (said == where).float()).backward()
        optimizer.step()
    with torch.no_grad():
        logits = head(gate(places(images()), texts[said])).squeeze(1)
    assert ((logits > 0) == (said == where)).float().mean() > 0.9  # always no: 0.75
