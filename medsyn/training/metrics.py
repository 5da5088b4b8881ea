"""How well scores separate good from poor, in a few lines of numpy."""

from __future__ import annotations

import numpy as np


def auroc(scores: np.ndarray, good: np.ndarray) -> float | None:
    """Area under the ROC curve: the probability that a good one scores higher than a poor one, ties counting half.

    Args:
        scores: [N], any scale.
        good: bool [N].

    Returns:
        0..1, or None if there is no good one or no poor one.
    """
    if good.all() or not good.any():
        return None
    values, positions = np.unique(scores, return_inverse=True)
    poor_at = np.bincount(positions[~good], minlength=len(values))
    poor_below = np.cumsum(poor_at) - poor_at
    return float((poor_below + 0.5 * poor_at)[positions[good]].mean() / (~good).sum())


def calibration_error(probabilities: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al., ICML 2017): how far probabilities are from frequencies, 0 is perfect.

    Args:
        probabilities: [N] in 0..1.
        outcomes: [N] in 0..1; bool, or soft.
        bins: of equal width.
    """
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.bincount(places, weights=probabilities - outcomes, minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def threshold_keeping(scores: np.ndarray, share: float) -> float:
    """The highest threshold that at least `share` of `scores` [N] reach."""
    return float(np.sort(scores)[int((1 - share) * len(scores) + 1e-9)])
