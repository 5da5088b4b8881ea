"""Image sides that keep positions, and texts that read them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from medsyn.config import PolicySection
from medsyn.models.text_gate import GRID, ConvGrid, TextGate, ViTGrid

SECTION = PolicySection(image_size=32, patch_size=4, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=32)


@pytest.mark.parametrize("kind", [ConvGrid, ViTGrid])
@pytest.mark.parametrize("size", [32, 48, 96])
def test_what_is_on_the_left_is_on_the_left_of_the_grid(kind: type[ConvGrid | ViTGrid], size: int) -> None:
    torch.manual_seed(0)
    grid = kind(SECTION.model_copy(update={"image_size": size}))
    pixels = torch.zeros(2, 3, size, size)
    pixels[1, :, : size // 8, : size // 8] = 1
    with torch.no_grad():
        seen = grid(pixels)
    assert seen.shape == (2, GRID * GRID, grid.width)
    change = (seen[1] - seen[0]).abs().sum(dim=1)
    assert change.argmax() == 0 and change[0] > 2 * change[GRID - 1]


def test_a_text_finds_the_same_thing_elsewhere_a_different_thing() -> None:
    """Learnt from 64 images: a blob above or below, left or right, and texts that say where."""
    torch.manual_seed(0)
    where = torch.arange(64) % 4
    seen = 0.3 * torch.randn(64, GRID * GRID, 8)
    seen[torch.arange(64), torch.tensor([0, 3, 12, 15])[where], 2] += 2
    texts, said = torch.randn(4, 6), torch.arange(64) // 4 % 4
    gate, head = TextGate(8, 6, 16), nn.Linear(16, 1)
    optimizer = torch.optim.AdamW([*gate.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(
            head(gate(seen, texts[said])).squeeze(1), (said == where).float()
        )
        loss.backward()
        optimizer.step()
    fresh = 0.3 * torch.randn(4, GRID * GRID, 8)
    fresh[torch.arange(4), [0, 3, 12, 15], 2] += 2
    with torch.no_grad():
        logits = head(gate(fresh.repeat_interleave(4, dim=0), texts.repeat(4, 1))).view(4, 4)
    assert logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert float(logits.diagonal().min()) > 0 > float(logits[~torch.eye(4, dtype=torch.bool)].max())
