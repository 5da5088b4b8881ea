"""What phantoms are drawn with: shapes as signed distance fields, smooth noise, and image degradations.

Coordinates are x to the image's right and y down, both -1..1 over the square image, so a phantom is the same picture
at every size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from medsyn.seeds import seed as seed_of


class Scene:
    """The empty image of one phantom: coordinates, shapes, and random numbers that depend on its identity."""

    def __init__(self, key: tuple[str | int, ...], size: int, zoom: float = 1.0, protocol: str = "B") -> None:
        self.size, self.protocol = size, protocol
        self.x, self.y = (axis / np.float32(zoom) for axis in _grid(size))
        self.rng = np.random.default_rng(seed_of(*key, "anatomy"))
        self.finding_rng = np.random.default_rng(seed_of(*key, "finding"))

    def vary(self, low: float, high: float) -> float:
        """An anatomical measure of this patient, uniform in `low`..`high`."""
        return float(self.rng.uniform(low, high))

    def place(self, low: float, high: float) -> float:
        """A measure of the finding, uniform in `low`..`high`."""
        return float(self.finding_rng.uniform(low, high))

    def look(self, a: float, b: float) -> float:
        """`a` in protocol A and `b` in protocol B (`phantom.Protocol`)."""
        return a if self.protocol == "A" else b

    def ellipse(self, cx: float, cy: float, a: float, b: float, angle: float = 0.0) -> np.ndarray:
        """Approximate signed distance to an ellipse (radians; negative inside), [size, size]."""
        cos, sin = np.cos(angle), np.sin(angle)
        u = ((self.x - cx) * cos + (self.y - cy) * sin) / a
        v = ((self.y - cy) * cos - (self.x - cx) * sin) / b
        radius = np.sqrt(u * u + v * v) + 1e-6
        return radius * (radius - 1) / (np.sqrt((u / a) ** 2 + (v / b) ** 2) + 1e-6)

    def cover(self, distance: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """How much of each pixel is inside a shape, 0..1; `soft` is the width of its edge."""
        edge = max(soft, 3.0 / self.size)
        t = np.clip(0.5 - distance / edge, 0.0, 1.0)
        return t * t * (3 - 2 * t)

    def noise(self, cells: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Smooth noise of about unit variance with `cells` bumps across the image, [size, size]."""
        return smooth_noise(rng or self.rng, self.size, cells)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


@lru_cache(maxsize=64)
def _spread(size: int, cells: int) -> np.ndarray:
    """Interpolation matrix [size, cells + 3] of cubic B-splines."""
    position = (np.arange(size) + 0.5) * cells / size
    first = np.floor(position).astype(int)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    matrix = np.zeros((size, cells + 3), np.float32)
    for offset in range(4):
        matrix[np.arange(size), first + offset] = weights[offset]
    return matrix * np.float32(1.45)  # a B-spline of white noise has a standard deviation of about 1 / 1.45 per axis


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of about unit variance with `cells` bumps across the image, float32 [size, size]."""
    spread = _spread(size, cells)
    return spread @ rng.standard_normal((cells + 3, cells + 3), dtype=np.float32) @ spread.T


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of an image [S, S] or [S, S, C]; `sigma` is in coordinates (the image is 2 wide)."""
    pixel = np.arange(image.shape[0])
    kernel = np.exp(-0.5 * ((pixel[:, None] - pixel[None, :]) / (sigma * len(pixel) / 2)) ** 2)
    matrix = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.einsum("ij,jk...,lk->il...", matrix, image, matrix, optimize=True)


def paint(image: np.ndarray, value: np.ndarray | float, mask: np.ndarray) -> np.ndarray:
    """`image` with `value` laid over it where `mask` is 1."""
    return image + (value - image) * mask


def bump(distance: np.ndarray, width: float) -> np.ndarray:
    """A bell of height 1 and standard deviation `width` / sqrt(2)."""
    return np.exp(-((distance / width) ** 2))


_GRAIN_CELLS = 76

# The degradations of each kind of picture; one is picked per phantom, and noise is always added.
_FAULTS: dict[str, tuple[str, ...]] = {
    "OCT": ("noise", "blur", "dark"),
    "Fundus": ("blur", "dark", "bright"),
    "Chest X-ray": ("noise", "blur", "dark", "bright"),
    "Chest CT": ("noise", "ghosts", "blur"),
    "Brain MRI": ("noise", "ghosts", "blur"),
    "Breast MRI": ("noise", "ghosts", "blur"),
}


def degrade(image: np.ndarray, kind: str, quality: int, rng: np.random.Generator) -> np.ndarray:
    """`image` [S, S(, 3)] as it would look at `quality`: 3 clean, 2 mildly and 1 severely degraded."""
    size = image.shape[0]
    fault = _FAULTS[kind][int(rng.integers(len(_FAULTS[kind])))]
    strength = (1.0, 0.36, 0.0)[quality - 1] * float(rng.uniform(0.85, 1.15))
    grain = 0.012 + 0.06 * strength
    if fault == "noise":
        grain += 0.11 * strength
    elif fault == "blur" and strength:
        image = blur(image, 0.09 * strength)
    elif fault == "ghosts":
        shift = round(size * float(rng.uniform(0.09, 0.13)))
        ghosts = np.roll(image, shift, 0) + np.roll(image, -shift, 0)
        image = (1 - 0.5 * strength) * image + 0.4 * strength * ghosts
    elif fault == "dark":
        image = image * (1 - 0.66 * strength)
    elif fault == "bright":
        image = image * (1 - 0.5 * strength) + 0.62 * strength * (image > 0.02)
    # The grain is as coarse at every size, so that a smaller picture of a phantom is the same picture.
    channels = [smooth_noise(rng, size, _GRAIN_CELLS) for _ in range(image[0, 0].size)]
    return image + grain * np.stack(channels, axis=-1).reshape(image.shape)
