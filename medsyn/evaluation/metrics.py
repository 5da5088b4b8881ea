"""Metrics of sets of images; pure functions, no files, no global random state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

_QUERIES_AT_ONCE = 256  # limits the memory for their distances to thousands of images
MEANINGFUL = 50  # images in the smaller set below which a kernel distance is an anecdote


class NotAvailable(Exception):
    """A library that a metric needs cannot be imported here; the message says which and why."""


KernelDistance = Callable[..., float]


def load_kernel_distance() -> KernelDistance:
    """clean-fid's `kernel_distance`.

    Raises:
        NotAvailable: clean-fid cannot be imported. It imports torchvision, which not every torch has a build for.
    """
    try:
        from cleanfid.fid import kernel_distance
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotAvailable(f"clean-fid cannot be imported here ({reason})") from None
    return kernel_distance


@dataclass(frozen=True)
class Distance:
    """A kernel distance, its standard error (None below four images a side) and the sizes of the two sets."""

    value: float
    error: float | None
    n: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """As a JSON-ready mapping, including whether the sets are large enough."""
        return {
            "value": self.value,
            "error": self.error,
            "n": list(self.n),
            "meaningful": min(self.n) >= MEANINGFUL,
        }


def kid(
    function: KernelDistance, first: np.ndarray, second: np.ndarray, subsets: int, subset_size: int, seed: int
) -> Distance | None:
    """Kernel Inception Distance (Binkowski et al. 2018, arXiv:1801.01401): unbiased MMD^2 with a cubic kernel.

    The standard error is a delete-half jackknife (Shao and Wu 1989): the spread of the distance over random halves.

    Args:
        function: clean-fid's `kernel_distance`.
        first: features [N, D].
        second: features [M, D].
        subsets: number of random subsets to average over.
        subset_size: most images per subset.
        seed: chooses the subsets.

    Returns:
        The distance, or None if a set has fewer than two images.
    """
    smaller = min(len(first), len(second))
    if smaller < 2:
        return None
    whole = min(subset_size, smaller)
    half = min(subset_size, smaller // 2)
    # clean-fid draws its subsets from numpy's global generator: seed it, then restore the old state
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        value = function(first, second, num_subsets=subsets, max_subset_size=whole)
        halves = [
            function(first, second, num_subsets=1, max_subset_size=half) for _ in range(subsets if half > 1 else 0)
        ]
    finally:
        np.random.set_state(state)
    error = float(np.std(halves)) * math.sqrt(half / (smaller - half)) if halves else None
    return Distance(float(value), error, (len(first), len(second)))


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint random halves of range(count), each sorted."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def pairwise_similarity(count: int, image: Callable[[int], np.ndarray], most_pairs: int, seed: int) -> float | None:
    """Mean structural similarity (SSIM, Wang et al. 2004) over random pairs of one set; 1 means all are identical.

    Args:
        count: images in the set.
        image: returns image `k` as float32 [S, S] in 0..1, S >= 7.
        most_pairs: number of pairs to compare; all of them if there are no more.
        seed: chooses the pairs.

    Returns:
        The mean, or None if there are fewer than two images.
    """
    if count < 2:
        return None
    pairs = count * (count - 1) // 2
    chosen = np.arange(pairs)
    if pairs > most_pairs:
        chosen = np.random.default_rng(seed).choice(pairs, most_pairs, replace=False)
    before = np.concatenate([[0], np.cumsum(np.arange(count - 1, 0, -1))])  # pairs with an earlier first image
    first = np.searchsorted(before, chosen, side="right") - 1
    second = first + 1 + chosen - before[first]
    values = [
        structural_similarity(image(int(one)), image(int(other)), data_range=1.0)
        for one, other in zip(first, second, strict=True)
    ]
    return float(np.mean(values))


def nearest_distances(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Root mean square distance per feature, [N], of each of `queries` [N, D] to the nearest of `references` [M, D]."""
    dimensions = queries.shape[1]
    right = references.astype(np.float64)
    lengths = (right**2).sum(1)[None, :]
    nearest = [np.empty(0)]
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        left = queries[start : start + _QUERIES_AT_ONCE].astype(np.float64)
        nearest.append(((left**2).sum(1)[:, None] + lengths - 2 * left @ right.T).min(axis=1))
    return np.sqrt(np.maximum(np.concatenate(nearest), 0) / dimensions)


def nearest_summary(distances: np.ndarray, held_out: np.ndarray | None) -> dict[str, float | int | None]:
    """Median and minimum of the distances to the nearest training image, and how often they are suspiciously small.

    `suspicious` is the share below the 5th percentile of `held_out`: about 0.05 if the generated images are as far
    from the training images as unseen real ones are, more if they copy.
    """
    suspicious = None
    if held_out is not None and len(held_out) and len(distances):
        suspicious = float(np.mean(distances < np.quantile(held_out, 0.05)))
    return {
        "n": len(distances),
        "median": float(np.median(distances)) if len(distances) else None,
        "minimum": float(distances.min()) if len(distances) else None,
        "suspicious": suspicious,
    }


def wilson(successes: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; (0, 1) if nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    centre = share + z**2 / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    low = (centre - spread) / scale if successes > 0 else 0.0
    high = (centre + spread) / scale if successes < total else 1.0
    return low, high


def proportion(outcomes: Iterable[bool]) -> dict[str, float | int] | None:
    """Share of true outcomes with its Wilson interval, or None if there are none."""
    values = [bool(outcome) for outcome in outcomes]
    if not values:
        return None
    low, high = wilson(sum(values), len(values))
    return {"value": sum(values) / len(values), "low": low, "high": high, "n": len(values)}
