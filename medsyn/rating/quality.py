"""What ratings and pairs together say about each image: a normal distribution of its quality.

The quality of an image is a latent number. A rating says between which two thresholds the number, moved by the rater's
strictness and by noise, lies (ordinal probit; McCullagh 1980); a pair says whether the difference of two numbers, with
noise, is above, below or within a margin (Thurstone 1927, with ties as of Rao and Kupper 1967). All three are intervals
of a linear function, their likelihoods are log-concave, and Newton's method finds the only maximum; the covariance is
that of Laplace's approximation there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PRIOR_SPREAD = 1.0  # of quality over images: the unit of everything here
STRICTNESS = 0.5  # standard deviation over raters
RATING_NOISE = 1.2  # of one rating: an ICC of about .4
PAIR_NOISE = 0.9  # of a difference: as much less as experts were found to be more reliable (docs/rating.md)
MARGIN = 0.25  # differences that raters call the same
_STEPS = 50  # of Newton's method; it needs five to ten
_CLOSE = 1e-8


@dataclass
class Evidence:
    """Answers about N images, by their numbers."""

    images: int
    ratings: list[tuple[int, int, int]] = field(default_factory=list)  # (image, rater, 1 to 3)
    pairs: list[tuple[int, int, str]] = field(default_factory=list)  # (a, b, what `pairs.csv` says)


@dataclass(frozen=True)
class Belief:
    """The quality of N images: mean [N] and covariance [N, N], in units of its spread over images."""

    mean: np.ndarray
    covariance: np.ndarray
    thresholds: tuple[float, float]  # between the ratings 1 and 2, 2 and 3

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation [N]."""
        return np.sqrt(np.diag(self.covariance))


@dataclass(frozen=True)
class _Intervals:
    """M observations: `rows` [M, N + raters] times the latent numbers, with noise, was within (low, high)."""

    rows: csr_matrix  # at most two numbers a row are not 0
    low: np.ndarray
    high: np.ndarray
    noise: np.ndarray


def infer(
    evidence: Evidence, prior: np.ndarray | None = None, prior_spread: np.ndarray | float = PRIOR_SPREAD
) -> Belief:
    """What the evidence says of the quality of all images.

    Args:
        evidence: the answers so far.
        prior: what is thought of each image before, [N], such as a scorer's opinion; 0 unless given.
        prior_spread: how sure that is, [N] or one number.
    """
    from scipy.linalg import cho_factor, cho_solve

    raters = 1 + max((rater for _, rater, _ in evidence.ratings), default=-1)
    mean = np.concatenate([np.zeros(evidence.images) if prior is None else prior, np.zeros(raters)])
    spread = np.concatenate([np.broadcast_to(prior_spread, evidence.images), np.full(raters, STRICTNESS)])
    thresholds = _thresholds(evidence.ratings)
    seen = _intervals(evidence, raters, thresholds)
    latent, precision = mean.copy(), spread**-2.0
    for _ in range(_STEPS):
        slopes, curvature = _likelihood(seen, latent)
        gradient = seen.rows.T @ slopes - precision * (latent - mean)
        step = cho_solve(cho_factor(_hessian(seen, curvature, precision)), gradient)
        latent = latent + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))  # far out the curvature vanishes
        if np.abs(step).max() < _CLOSE:
            break
    _, curvature = _likelihood(seen, latent)
    covariance = np.linalg.inv(_hessian(seen, curvature, precision))
    count = evidence.images
    return Belief(latent[:count], covariance[:count, :count], thresholds)


def _hessian(seen: _Intervals, curvature: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Of the negative log-posterior, [N + raters, N + raters]."""
    from scipy.sparse import diags

    hessian: np.ndarray = (seen.rows.T @ diags(curvature) @ seen.rows).toarray()
    hessian[np.diag_indices_from(hessian)] += precision
    return hessian


def _thresholds(ratings: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    """Where the shares of 1 and of 1 and 2 among all ratings are reached; a third each, as long as there are few."""
    from scipy.stats import norm

    counts = np.bincount([rating - 1 for _, _, rating in ratings], minlength=3) + 1.0
    total = np.sqrt(PRIOR_SPREAD**2 + STRICTNESS**2 + RATING_NOISE**2)
    low, high = total * norm.ppf(np.cumsum(counts)[:2] / counts.sum())
    return float(low), float(high)


def _intervals(evidence: Evidence, raters: int, thresholds: tuple[float, float]) -> _Intervals:
    from scipy.sparse import csr_matrix

    edges = np.array([-np.inf, *thresholds, np.inf])
    observations: list[tuple[dict[int, float], float, float, float]] = []
    for image, rater, rating in evidence.ratings:
        observations.append(({image: 1, evidence.images + rater: 1}, edges[rating - 1], edges[rating], RATING_NOISE))
    between = {"a": (MARGIN, np.inf), "b": (-np.inf, -MARGIN), "same": (-MARGIN, MARGIN)}
    for first, second, preferred in evidence.pairs:
        if preferred == "neither":  # says nothing of the order
            observations += [({image: 1}, -np.inf, edges[1], RATING_NOISE) for image in (first, second)]
        else:
            observations.append(({first: 1, second: -1}, *between[preferred], PAIR_NOISE))
    places = [(number, place) for number, (row, *_) in enumerate(observations) for place in row]
    values = [value for row, *_ in observations for value in row.values()]
    shape = len(observations), evidence.images + raters
    rows = csr_matrix((values, np.array(places, int).reshape(-1, 2).T), shape=shape, dtype=float)
    low, high, noise = (np.array([one[place] for one in observations]) for place in (1, 2, 3))
    return _Intervals(rows, low, high, noise)


def _likelihood(seen: _Intervals, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every observation's log-likelihood: its slope [M], and its curvature downwards [M], in its linear function."""
    from scipy.stats import norm

    value = seen.rows @ latent
    high, low = (seen.high - value) / seen.noise, (seen.low - value) / seen.noise
    mirrored = low > 0  # of the two tails the one that keeps its digits
    upper, lower = np.where(mirrored, -low, high), np.where(mirrored, -high, low)
    larger = norm.logcdf(upper)
    inside = larger + np.log1p(-np.exp(norm.logcdf(lower) - larger))
    at_high, at_low = np.exp(norm.logpdf(high) - inside), np.exp(norm.logpdf(low) - inside)
    slope = (at_low - at_high) / seen.noise
    return slope, slope**2 + (_times(high, at_high) - _times(low, at_low)) / seen.noise**2


def _times(place: np.ndarray, density: np.ndarray) -> np.ndarray:
    """place * density, 0 where the place is infinite."""
    return np.where(np.isfinite(place), place, 0) * density


# --- what the next answers would say --------------------------------------------------------------------------------


def rating_information(belief: Belief) -> np.ndarray:
    """Expected information of one more rating of each image, [N], in nats: what the answer says of the quality."""
    from scipy.stats import norm

    points, weights = np.polynomial.hermite_e.hermegauss(15)
    weights = weights / weights.sum()
    noise = np.sqrt(RATING_NOISE**2 + STRICTNESS**2)
    at = belief.mean[:, None] + belief.spread[:, None] * points  # [N, points]
    below = norm.cdf((np.array(belief.thresholds) - at[..., None]) / noise)
    edges = np.concatenate([np.zeros_like(below[..., :1]), below, np.ones_like(below[..., :1])], axis=-1)
    chances = np.diff(edges, axis=-1)  # [N, points, 3]
    return _entropy(np.einsum("p,npk->nk", weights, chances)) - _entropy(chances) @ weights


def pair_information(belief: Belief, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Expected information of comparing images `first` [P] with `second` [P], in nats.

    As of Houlsby et al. (2011, arXiv:1112.5745), here by quadrature, since there are three answers. ASAP (Mikhailiuk et
    al. 2020) chooses pairs by the same quantity.
    """
    from scipy.stats import norm

    variance = np.diag(belief.covariance)
    spread = np.sqrt((variance[first] + variance[second] - 2 * belief.covariance[first, second]).clip(0))
    points, weights = np.polynomial.hermite_e.hermegauss(9)
    weights = weights / weights.sum()
    at = (belief.mean[first] - belief.mean[second])[:, None] + spread[:, None] * points
    above, below = norm.sf((MARGIN - at) / PAIR_NOISE), norm.cdf((-MARGIN - at) / PAIR_NOISE)
    chances = np.stack([above, below, 1 - above - below], axis=-1)
    return _entropy(np.einsum("p,npk->nk", weights, chances)) - _entropy(chances) @ weights


def _entropy(chances: np.ndarray) -> np.ndarray:
    """Over the last axis, in nats."""
    kept = chances.clip(1e-12)
    return -(kept * np.log(kept)).sum(axis=-1)
