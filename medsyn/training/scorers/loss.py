"""The losses of the scorers: between scores and ratings, and between the scores of two images that are compared."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def advantage_loss(logits: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
    """Advantage-weighted log-odds, -(R - s) log(s / (1 - s)), with the scorer's own score s as the baseline.

    The log-odds of s are its logit. As s is held constant in the advantage, the gradient is (s - R): that of
    cross-entropy with the soft label R, calibrated, and zero when s is R. With |R - s| as the advantage and log s
    instead of the log-odds, as the method was first described, the scores of poor images would rise fastest. The weight
    (expert level) scales the loss, never the reward. All arguments are [N].
    """
    advantage = reward - logits.detach().sigmoid()
    return -(weight * advantage * logits).mean()


def cross_entropy(logits: Tensor, reward: Tensor, weight: Tensor) -> Tensor:
    """The loss with the same gradient as `advantage_loss`. It falls as scores improve, so it is the one reported."""
    return functional.binary_cross_entropy_with_logits(logits, reward, weight)


def bradley_terry(better: Tensor, worse: Tensor, preference: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of comparisons: the odds that an image is the better one are the ratio of both images' odds.

    R. A. Bradley, M. E. Terry, "Rank analysis of incomplete block designs", Biometrika 39 (1952).

    Args:
        better: logits [P] of the images that are better, or one of two that are the same.
        worse: logits [P] of the others.
        preference: [P], 1 where one is better, 0.5 where they are the same.
        weight: [P].
    """
    return functional.binary_cross_entropy_with_logits(better - worse, preference, weight)
