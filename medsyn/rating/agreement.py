"""How far ratings agree: of one rater with themselves, and of several raters; pure functions of arrays.

A table of ratings is float [N, K]: N images, K raters (or the first and the second time of one), NaN where a rating is
missing. Intervals are percentiles of a bootstrap over images, which is right for any number of raters and for missing
ratings.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVELS = (1, 2, 3)
RESAMPLES = 500
NEAR_CHANCE = 0.2  # below: "slight" in the words of Landis and Koch (1977)

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval; NaN where the ratings say nothing about it. `n` images were used."""

    value: float
    low: float
    high: float
    n: int

    @property
    def is_near_chance(self) -> bool:
        """Whether raters who guess could have agreed as well as this."""
        return not math.isnan(self.value) and (self.value < NEAR_CHANCE or not self.low > 0)


def estimate(statistic: Statistic, ratings: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """`statistic` of `ratings` [N, K], with its bootstrap interval over the N images.

    Rows with fewer than two ratings say nothing about agreement and are left out.
    """
    rows = ratings[(~np.isnan(ratings)).sum(axis=1) >= 2]
    if len(rows) < 2:
        return Estimate(math.nan, math.nan, math.nan, len(rows))
    return bootstrap(statistic, rows, seed, resamples)


def bootstrap(statistic: Statistic, rows: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """`statistic` of `rows`, with the 95 % percentiles of what it is for rows drawn with replacement."""
    generator = np.random.default_rng(seed)
    drawn = [statistic(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(resamples)]
    known = np.array(drawn)[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) >= resamples / 2 else (math.nan, math.nan)
    return Estimate(float(statistic(rows)), float(low), float(high), len(rows))


def weighted_kappa(ratings: np.ndarray) -> float:
    """Cohen's kappa (1968) of the two columns with quadratic weights; NaN if both are constant and the same.

    By chance the squared difference is that of two independent draws: both variances and the squared difference of the
    means.
    """
    first, second = ratings[~np.isnan(ratings).any(axis=1)].T
    if len(first) == 0:
        return math.nan
    chance = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return float(1 - ((first - second) ** 2).mean() / chance) if chance > 0 else math.nan


def icc(ratings: np.ndarray) -> float:
    """Intraclass correlation of single ratings, absolute agreement: ICC(2,1) of Shrout and Fleiss (1979).

    Only images that every rater rated count; NaN if all ratings are the same.
    """
    complete = ratings[~np.isnan(ratings).any(axis=1)]
    count, raters = complete.shape
    if count < 2 or raters < 2:
        return math.nan
    mean = complete.mean()
    rows = raters * ((complete.mean(axis=1) - mean) ** 2).sum() / (count - 1)
    columns = count * ((complete.mean(axis=0) - mean) ** 2).sum() / (raters - 1)
    left = complete - complete.mean(axis=1, keepdims=True) - complete.mean(axis=0, keepdims=True) + mean
    error = (left**2).sum() / ((count - 1) * (raters - 1))
    spread = rows + (raters - 1) * error + raters * (columns - error) / count
    return float((rows - error) / spread) if spread > 0 else math.nan


def krippendorff_alpha(ratings: np.ndarray) -> float:
    """Krippendorff's alpha (2011) for ordinal ratings by any number of raters; NaN if all ratings are the same."""
    import krippendorff

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")
        try:
            return float(krippendorff.alpha(reliability_data=ratings.T, level_of_measurement="ordinal"))
        except (ValueError, AssertionError):  # one value only
            return math.nan


def gwet_ac2(ratings: np.ndarray, levels: Sequence[int] = LEVELS) -> float:
    """Gwet's AC2 (2014) with quadratic weights: agreement that does not fall where almost all ratings are the same."""
    scale = np.array(levels, float)
    weights = 1 - (scale[:, None] - scale[None, :]) ** 2 / (scale[-1] - scale[0]) ** 2
    return _gwet(ratings, scale, weights)


def _gwet(ratings: np.ndarray, scale: np.ndarray, weights: np.ndarray) -> float:
    counts = (ratings[:, :, None] == scale).sum(axis=1).astype(float)  # [N, levels]
    raters = counts.sum(axis=1)
    counts, raters = counts[raters > 0], raters[raters > 0]
    several = raters >= 2
    if not several.any():
        return math.nan
    agreeing = (counts * (counts @ weights - 1)).sum(axis=1)[several] / (raters * (raters - 1))[several]
    share = (counts / raters[:, None]).mean(axis=0)
    chance = weights.sum() / (len(scale) * (len(scale) - 1)) * (share * (1 - share)).sum()
    return float((agreeing.mean() - chance) / (1 - chance))


def detectability(real: np.ndarray, generated: np.ndarray) -> float:
    """How well ratings tell real images from generated ones: d_a = sqrt(2) z(AUC) (Simpson and Fitter 1973).

    0: as good as real ones; positive: real images are rated higher. The AUC is kept half a comparison away from 0 and
    1, where d_a is infinite.
    """
    from scipy.stats import norm

    pairs = len(real) * len(generated)
    if pairs == 0:
        return math.nan
    ranked = np.sort(generated)
    below, not_above = (np.searchsorted(ranked, real, side).sum() for side in ("left", "right"))
    wins = 0.5 * (below + not_above)  # a tie is half a win
    return float(math.sqrt(2) * norm.ppf(min(max(wins, 0.5), pairs - 0.5) / pairs)) if pairs > 1 else math.nan


def slope(places: np.ndarray, values: np.ndarray) -> float:
    """Change of `values` from the first to the last of `places`, by least squares; NaN if there is one place only."""
    span = np.ptp(places) if len(places) else 0
    return float(np.polyfit((places - places.min()) / span, values, 1)[0]) if span > 0 else math.nan
