"""What is counted of an arm's images, and how sure that is: pure functions of what an observer saw.

All arms have the same prompts and noise, so differences are paired. An interval draws campaign seeds first and then the
images of each: it has the variance of training in it, as far as there are several seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medsyn.models.feature_distances import covered, kernel, squared_distances
from medsyn.seeds import seed

DRAWS = 1000  # of the bootstrap
FIGURES = ("right", "good", "KID", "recall", "diversity", "accepted")


@dataclass(frozen=True)
class Seen:
    """N images of one arm and one campaign seed, as the judge saw them, beside R good phantoms."""

    right: np.ndarray  # bool [N]
    good: np.ndarray  # bool [N]: right and not poor
    features: np.ndarray  # [N, D], in units of the good phantoms' deviation
    reference: np.ndarray  # [R, D]
    accepted: np.ndarray  # [N], whether the scorers' reward reaches a fixed threshold; NaN where nobody asked them

    def figures(self) -> dict[str, float]:
        """Every figure of all images."""
        return self.figures_of(np.ones(len(self.right)), np.ones(len(self.reference)))

    def figures_of(self, times: np.ndarray, reference_times: np.ndarray) -> dict[str, float]:
        """Every figure, with each image counted `times` [N] and each good phantom `reference_times` [R]."""
        return {
            "right": float(times @ self.right / times.sum()),
            "good": float(times @ self.good / times.sum()),
            "KID": self._kernel_distance(times, reference_times),
            "recall": float(reference_times @ self._covered / reference_times.sum()),
            "diversity": _mean_of_pairs(self._distances, times),
            "accepted": float(times @ self.accepted / times.sum()),
        }

    def _kernel_distance(self, times: np.ndarray, reference_times: np.ndarray) -> float:
        """Unbiased MMD^2 with KID's cubic kernel (Binkowski et al. 2018); an image is never paired with itself."""
        own, other, between = self._kernels
        across = times @ between @ reference_times / (times.sum() * reference_times.sum())
        return _mean_of_pairs(own, times) + _mean_of_pairs(other, reference_times) - 2 * float(across)

    @cached_property
    def _kernels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, second = self.features, self.reference
        return tuple(kernel(*pair) for pair in ((first, first), (second, second), (first, second)))  # type: ignore[return-value]

    @cached_property
    def _distances(self) -> np.ndarray:
        return np.asarray(np.sqrt(squared_distances(self.features, self.features)))

    @cached_property
    def _covered(self) -> np.ndarray:
        """bool [R]: the good phantoms that the images cover, of which recall is the share."""
        own, to_reference = (squared_distances(its, self.features) for its in (self.features, self.reference))
        return covered(to_reference.T, own)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "-" if np.isnan(self.value) else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


Combine = Callable[[Mapping[str, Mapping[str, float]]], float]  # {arm: {figure: value}} to a number


def estimate(
    seeds: Sequence[Mapping[str, Seen]], combine: Mapping[str, Combine], draws: int = DRAWS
) -> dict[str, Estimate]:
    """Numbers of several arms together, each the mean over campaign seeds, with intervals.

    Args:
        seeds: the arms of every campaign seed; image i of each arm has the same prompt and noise.
        combine: what is asked, by name.
        draws: of the bootstrap.
    """

    def asked(places: np.ndarray, times: Callable[[Seen], tuple[np.ndarray, np.ndarray]] | None) -> dict[str, float]:
        values = []
        for place in places.tolist():
            arms = seeds[place]
            counted = times(next(iter(arms.values()))) if times else None
            of = {arm: its.figures_of(*counted) if counted else its.figures() for arm, its in arms.items()}
            values.append({name: combining(of) for name, combining in combine.items()})
        return {name: float(np.mean([one[name] for one in values])) for name in combine}

    rng = np.random.default_rng(seed("alignment benchmark", len(seeds)))

    def drawn(its: Seen) -> tuple[np.ndarray, np.ndarray]:
        first, second = len(its.right), len(its.reference)
        return tuple(rng.multinomial(n, np.full(n, 1 / n)).astype(float) for n in (first, second))  # type: ignore[return-value]

    everything = asked(np.arange(len(seeds)), None)
    found = [asked(rng.integers(len(seeds), size=len(seeds)), drawn) for _ in range(draws)]
    bounds = {name: np.quantile([one[name] for one in found], (0.025, 0.975)).tolist() for name in combine}
    return {name: Estimate(everything[name], *bounds[name]) for name in combine}


def of_arm(arm: str, figure: str) -> Combine:
    """One figure of one arm."""
    return lambda arms: arms[arm][figure]


def gain(arm: str, other: str, figure: str) -> Combine:
    """How much higher a figure of one arm is than another's."""
    return lambda arms: arms[arm][figure] - arms[other][figure]


def share(arm: str, other: str, figure: str) -> Combine:
    """A figure of one arm in parts of another's."""
    return lambda arms: arms[arm][figure] / arms[other][figure]


def _mean_of_pairs(matrix: np.ndarray, times: np.ndarray) -> float:
    """The mean over pairs of different images, symmetric [N, N], each counted `times` [N]."""
    diagonal = matrix.diagonal() @ times**2
    return float((times @ matrix @ times - diagonal) / (times.sum() ** 2 - (times**2).sum()))
