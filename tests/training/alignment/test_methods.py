"""The losses: where they begin, which way they pull, and where they stop pulling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsyn.training.alignment.methods import CLIP, LOSSES, Rows

SHAPE = (2, 3, 4, 4)


def rows(predicted: Tensor, advantage: list[float], reference: Tensor | None = None) -> Rows:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(SHAPE, generator=generator)
    before = target + 0.5 * torch.randn(SHAPE, generator=generator) if reference is None else reference
    return Rows(before + predicted, before, target, torch.tensor([1.0, 0.5]), torch.tensor(advantage))


def gradient(method: str, advantage: list[float], beta: float) -> Tensor:
    """Of the loss, where the model is the reference."""
    moved = torch.zeros(SHAPE, requires_grad=True)
    LOSSES[method](rows(moved, advantage), beta).sum().backward()
    assert moved.grad is not None
    return moved.grad


def denoising_gradient(signs: list[float]) -> Tensor:
    """Of the ordinary loss of each row, times a sign."""
    moved = torch.zeros(SHAPE, requires_grad=True)
    given = rows(moved, [1.0])
    (given.error(given.predicted) * torch.tensor(signs)).sum().backward()
    assert moved.grad is not None
    return moved.grad


@pytest.mark.parametrize(
    ("method", "advantage", "beta", "signs"),
    [
        ("dpo", [1.0], 2000.0, [1.0, -1.0]),  # towards the better one of the pair, away from the worse one
        ("nft", [1.0, -1.0], 0.3, [1.0, -1.0]),
        ("nft", [0.5, 0.0], 1.0, [0.5, 0.0]),
        ("awm", [0.7, -0.4], 1.0, [0.7, -0.4]),
        ("rejection", [1.0, 1.0], 1.0, [1.0, 1.0]),
    ],
)
def test_the_first_step_is_the_advantage_times_the_denoising_loss(
    method: str, advantage: list[float], beta: float, signs: list[float]
) -> None:
    torch.testing.assert_close(gradient(method, advantage, beta), denoising_gradient(signs))


def test_dpo_saturates_where_the_better_one_has_gained_more() -> None:
    moved = torch.zeros(SHAPE)
    given = rows(moved, [1.0])
    towards = given.target - given.reference
    won = rows(torch.stack([towards[0], -towards[1]]), [1.0])
    lost = rows(torch.stack([-towards[0], towards[1]]), [1.0])
    assert LOSSES["dpo"](won, 2000.0).item() < 1e-6 < LOSSES["dpo"](lost, 2000.0).item()


def test_awm_pushes_a_bad_image_only_so_far_away() -> None:
    """Without the limit its error grows for ever, finite all the way: no check of numbers sees it."""
    moved = torch.zeros(SHAPE)
    given = rows(moved, [-1.0, -1.0])
    away = 2 * (given.reference - given.target)
    further = away.clone().requires_grad_(True)
    loss = LOSSES["awm"](rows(further, [-1.0, -1.0]), 1e-9)
    loss.sum().backward()
    assert further.grad is not None
    assert further.grad.abs().max() < 1e-6
    assert CLIP < 1


def test_nft_is_bounded_below() -> None:
    """Whatever is predicted: both of its terms are squares."""
    for size in (0.1, 10.0, 1000.0):
        moved = size * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
        assert (LOSSES["nft"](rows(moved, [1.0, -1.0]), 0.1) >= 0).all()
