"""Distances between sets of images as features, which the report and an alignment's judge both measure.

Pure functions of features [N, D] such as `medsyn.models.image_features` gives.
"""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 3  # of coverage


def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KID's kernel (Binkowski et al., ICLR 2018) of features [N, D] and [M, D]: (x.y / D + 1)^3, [N, M]."""
    found: np.ndarray = (first.astype(np.float64) @ second.astype(np.float64).T / max(1, first.shape[1]) + 1) ** 3
    return found


def own_kernel(features: np.ndarray) -> np.ndarray:
    """The same of each two of N images [N, N]; 0 for an image with itself, which is no pair."""
    found = kernel(features, features)
    np.fill_diagonal(found, 0)
    return found


def among(features: np.ndarray) -> float:
    """The mean of the kernel over the pairs of different images; NaN of fewer than two."""
    count = len(features)
    return float(own_kernel(features).sum()) / (count * (count - 1)) if count > 1 else float("nan")


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N, M] of features [N, D] and [M, D]."""
    left, right = first.astype(np.float64), second.astype(np.float64)
    return np.maximum((left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T, 0)


def covered(to_real: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Which real images are nearer to some image than its third neighbour is (Kynkäänniemi et al., NeurIPS 2019).

    Args:
        to_real: squared distances of N images, more than `NEIGHBOURS`, to M real ones [N, M].
        own: of the images to one another [N, N].

    Returns:
        bool [M]; recall is their mean.
    """
    ranked = own.copy()
    np.fill_diagonal(ranked, np.inf)
    radius = np.partition(ranked, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]
    found: np.ndarray = (to_real <= radius[:, None]).any(axis=0)
    return found
