"""The losses: which way they push, and how far."""

from __future__ import annotations

import pytest
import torch

from medsyn.training.scorers.loss import advantage_loss, bradley_terry, cross_entropy


def test_the_advantage_loss_has_the_gradient_of_soft_label_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, generator=generator) * 5
    reward = torch.randint(0, 3, (200,), generator=generator) / 2
    weight = torch.rand(200, generator=generator) + 0.1
    gradients = []
    for loss in (advantage_loss, cross_entropy):
        leaf = logits.clone().requires_grad_()
        loss(leaf, reward, weight).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)


def test_the_advantage_loss_is_what_its_name_says() -> None:
    logits, reward = torch.tensor([0.3, -2.0, 1.5]), torch.tensor([1.0, 0.5, 0.0])
    score = logits.sigmoid()
    expected = -((reward - score) * (score.log() - (1 - score).log())).mean()
    torch.testing.assert_close(advantage_loss(logits, reward, torch.ones(3)), expected)


@pytest.mark.parametrize("logit", [-60.0, 60.0])
def test_the_loss_of_a_certain_scorer_is_finite_and_pushes_back(logit: float) -> None:
    leaf = torch.tensor([logit], requires_grad=True)
    loss = advantage_loss(leaf, torch.tensor([float(logit < 0)]), torch.ones(1))
    loss.backward()
    assert bool(loss.isfinite()) and float(leaf.grad.sign()) == (1 if logit > 0 else -1)  # type: ignore[union-attr]


def test_training_ranks_images_by_rating_and_not_backwards() -> None:
    """The published |R - s| log s makes poor images score highest; its sign is what this test is about."""
    logits = torch.zeros(3, requires_grad=True)
    reward = torch.tensor([0.0, 0.5, 1.0])
    for _ in range(200):
        loss = advantage_loss(logits, reward, torch.ones(3))
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    poor, acceptable, excellent = logits.sigmoid().tolist()
    assert poor < 0.1 and acceptable == pytest.approx(0.5, abs=0.01) and excellent > 0.9


def test_a_row_of_weight_0_teaches_nothing() -> None:
    logits = torch.zeros(2, requires_grad=True)
    advantage_loss(logits, torch.ones(2), torch.tensor([0.0, 1.0])).backward()
    assert logits.grad is not None and logits.grad[0] == 0 and logits.grad[1] != 0


def test_comparisons_part_what_differs_and_join_what_is_the_same() -> None:
    better, worse = torch.zeros(2, requires_grad=True), torch.tensor([0.0, -2.0], requires_grad=True)
    bradley_terry(better, worse, torch.tensor([1.0, 0.5]), torch.ones(2)).backward()
    assert better.grad is not None and worse.grad is not None
    assert better.grad[0] < 0 < worse.grad[0] and better.grad[1] > 0 > worse.grad[1]
    assert torch.equal(better.grad, -worse.grad)  # an order says nothing of how good both are


def test_the_odds_of_a_comparison_are_the_ratio_of_both_images_odds() -> None:
    better, worse = torch.tensor([0.9]).logit(), torch.tensor([0.6]).logit()
    expected = -torch.log((torch.tensor(9.0) / 1.5) / (1 + torch.tensor(9.0) / 1.5))
    torch.testing.assert_close(bradley_terry(better, worse, torch.ones(1), torch.ones(1)), expected)
