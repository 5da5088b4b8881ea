"""What answers about unseen groups say of a scorer: figures with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from medsyn.models.scores import Evidence, Interval
from medsyn.seeds import seed
from medsyn.training.metrics import calibration_error

DRAWS = 1000  # of the bootstrap
FILTER_AT = 4  # of so many images the best by score is taken, where filtering is measured

# of how often each of N values counts in each of D draws, [D, N], to [D]; NaN where it cannot be said
Statistic = Callable[[np.ndarray], np.ndarray]


def interval(groups: np.ndarray, statistic: Statistic) -> Interval:
    """A statistic of N values and its 95 % interval, from a bootstrap over their groups.

    Args:
        groups: str [N]; whole groups are drawn, as images of one patient say much the same.
        statistic: of how often each value counts.
    """
    if not len(groups):
        return Interval()
    names, group = np.unique(groups, return_inverse=True)
    value = float(statistic(np.ones((1, len(groups))))[0])
    if math.isnan(value) or len(names) < 2:
        return Interval(value=None if math.isnan(value) else value, n=len(names))
    rng = np.random.default_rng(seed("bootstrap", len(names)))
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    values = statistic(times[:, group].astype(np.float64))
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, (0.025, 0.975)).tolist() if len(values) > DRAWS / 2 else (None, None)
    return Interval(value=value, low=low, high=high, n=len(names))


def weighted_mean(values: np.ndarray, weight: np.ndarray | None = None) -> Statistic:
    """The mean of values [N] with weights [N]."""
    weight = np.ones(len(values)) if weight is None else weight

    def of(times: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.asarray((times @ (weight * values)) / (times @ weight))

    return of


def weighted_auroc(scores: np.ndarray, good: np.ndarray) -> Statistic:
    """The area under the ROC curve of scores [N] of good ones and others (bool [N]), ties counting half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    good = good[order]

    def of(times: np.ndarray) -> np.ndarray:
        ordered = times[:, order]
        good_at, poor_at = (np.add.reduceat(ordered * its, starts, axis=1) for its in (good, ~good))
        won = (good_at * (np.cumsum(poor_at, axis=1) - 0.5 * poor_at)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(won / (good_at.sum(axis=1) * poor_at.sum(axis=1)))

    return of


def evidence(scores: np.ndarray, target: np.ndarray, modality: np.ndarray, group: np.ndarray) -> Evidence:
    """What scores of unseen images, [M], say, given what experts said, 0..1, [M]."""

    def of(rows: np.ndarray) -> Interval:
        return interval(group[rows], weighted_auroc(scores[rows], target[rows] >= 0.5))

    return Evidence(
        auroc=of(np.ones(len(scores), dtype=bool)),
        by_modality={str(name): of(modality == name) for name in np.unique(modality)},
        calibration_error=calibration_error(scores, target) if len(scores) else None,
    )


def best_of(scores: np.ndarray, quality: np.ndarray, size: int = FILTER_AT) -> float | None:
    """The expected quality of the best by score of `size` images drawn at random (Filter@k); None with fewer images."""
    count = len(scores)
    if count < size:
        return None
    ordered = quality[np.argsort(scores, kind="stable")]
    # that the image of rank r is the best one of a draw: C(r, size - 1) / C(count, size)
    odds, odd = np.zeros(count), size / count
    for rank in range(count - 1, size - 2, -1):
        odds[rank] = odd
        odd *= (rank - size + 1) / rank if rank else 0.0
    return float((odds * ordered).sum())


def spearman(scores: np.ndarray, quality: np.ndarray) -> float | None:
    """The rank correlation, ties in the middle; None where one of them does not vary."""
    ranks = [_ranks(values) for values in (scores, quality)]
    if any(len(values) < 2 or values.std() == 0 for values in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[places]
