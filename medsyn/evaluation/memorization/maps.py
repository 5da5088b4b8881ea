"""What is compared of an image: small maps of its structure, indifferent to brightness, contrast and inversion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion, gaussian_filter

SIDE = 64  # pixels of the map that images are matched on
FINE_SIDE = 128  # of the one they are compared on at last, where images have as many pixels
_LARGEST = 256  # pixels: what is finer is noise to this method
_DARK = 12.0  # grey levels; darker is background
_FLOOR = 0.3, 0.35  # of the local contrast that a band is divided by: grey levels, and a share of the whole map's
_ERODED, _LEAST_KEPT = (3, 2, 1), 0.2  # pixels by which the mask shrinks, as long as so much of it is left

MATCHED = 1.0, 3.0, 5.0  # standard deviations of `band` in pixels of a map
_FINE = {FINE_SIDE: (0.8, 2.5, 6.0), SIDE: (0.6, 2.0, 5.0)}
_PLAIN = (0.8, 5.0), (1.5, 10.0)


def band(image: np.ndarray, low: float, high: float, neighbourhood: float) -> np.ndarray:
    """A band of `image` [S, S] between two Gaussians, divided by its local contrast; standard deviations in pixels."""
    between = gaussian_filter(image, low) - gaussian_filter(image, high)
    absolute, relative = _FLOOR
    floor = relative * float(np.sqrt(np.mean(between**2))) + absolute
    divided: np.ndarray = between / np.sqrt(gaussian_filter(between**2, neighbourhood) + floor**2)
    return divided.astype(np.float32)


@dataclass(frozen=True)
class Maps:
    """One image, as float32 grey levels 0..255 of two sizes; further maps are made when they are asked for."""

    grey: np.ndarray  # [SIDE, SIDE]
    finer: np.ndarray  # [FINE_SIDE, FINE_SIDE], or `grey` where the image is smaller

    @cached_property
    def matched(self) -> np.ndarray:
        """The band that images are registered on, [SIDE, SIDE]."""
        return band(self.grey, *MATCHED)

    @cached_property
    def fine(self) -> np.ndarray:
        """The finest band that is compared."""
        return band(self.finer, *_FINE[len(self.finer)])

    @cached_property
    def plain(self) -> tuple[np.ndarray, ...]:
        """Two bands as they are, [SIDE, SIDE] each: where a normalised one is all noise, these are not."""
        return tuple(gaussian_filter(self.grey, low) - gaussian_filter(self.grey, high) for low, high in _PLAIN)

    @cached_property
    def mask(self) -> np.ndarray:
        """Where there is tissue, bool [SIDE, SIDE]. Its rim is left out: images of one device have it in common."""
        bright = gaussian_filter(self.grey, 1.0) > _DARK
        for pixels in _ERODED:
            kept: np.ndarray = binary_erosion(bright, iterations=pixels)
            if kept.mean() >= _LEAST_KEPT:
                break
        return kept if kept.any() else np.ones_like(bright)

    def flipped(self) -> Maps:
        """The same with left and right exchanged."""
        grey = self.grey[:, ::-1].copy()
        return Maps(grey, grey if self.finer is self.grey else self.finer[:, ::-1].copy())


def maps_of(pixels: np.ndarray) -> Maps:
    """The maps of an image, uint8 [H, W] or [H, W, 3], which is padded to a square."""
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2, dtype=np.float32)
    image = Image.fromarray(np.asarray(grey, dtype=np.float32))
    scale = min(_LARGEST, max(image.size)) / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BOX) if size != image.size else image
    square = Image.new("F", (max(size), max(size)))
    square.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))

    def at(side: int) -> np.ndarray:
        smaller = max(size) >= side
        filtered = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
        return np.asarray(square.resize((side, side), filtered), dtype=np.float32)

    small = at(SIDE)
    return Maps(small, at(FINE_SIDE) if max(size) >= FINE_SIDE else small)
