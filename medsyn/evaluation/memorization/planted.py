"""Copies as a generator might make them, of images that are there: to see which of them the search finds."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates

Pixels = np.ndarray  # uint8 [H, W], grey
Change = Callable[[Pixels, np.random.Generator], Pixels]

_BASE = 256  # pixels of the side that lengths below are given for


def _grey(values: np.ndarray) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _turned(pixels: Pixels, degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Pixels:
    """The image turned, or `scale` of its side as large as the whole, `shift` of the side from its centre."""
    turn, shape = np.deg2rad(degrees), np.array(pixels.shape)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = (shape - 1) / 2
    offset = centre - matrix @ centre + np.array(shift) * shape
    return _grey(affine_transform(pixels.astype(np.float32), matrix, offset, order=1, mode="nearest"))


def _cropped(share: float) -> Change:
    reach = (1 - share) / 2

    def change(pixels: Pixels, random: np.random.Generator) -> Pixels:
        return _turned(pixels, 0.0, share, (random.uniform(-reach, reach), random.uniform(-reach, reach)))

    return change


def _rotated(degrees: float) -> Change:
    return lambda pixels, random: _turned(pixels, degrees * random.choice([-1.0, 1.0]))


def _noisy(deviation: float) -> Change:
    return lambda pixels, random: _grey(pixels + random.normal(0, deviation, pixels.shape))


def _jpeg(quality: int) -> Change:
    def change(pixels: Pixels, random: np.random.Generator) -> Pixels:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream))

    return change


def _gamma(exponent: float) -> Change:
    return lambda pixels, random: _grey(255 * (pixels / 255.0) ** exponent)


def _blurred(deviation: float) -> Change:
    return lambda pixels, random: _grey(
        gaussian_filter(pixels.astype(np.float32), deviation * max(pixels.shape) / _BASE)
    )


def _flipped(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return pixels[:, ::-1].copy()


def _inverted(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return 255 - pixels


def _bent(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Bent smoothly, by 2 % of the side."""
    side = max(pixels.shape)
    rows, columns = np.meshgrid(*(np.arange(length, dtype=np.float64) for length in pixels.shape), indexing="ij")
    moved = []
    for grid in (rows, columns):
        field = gaussian_filter(random.normal(size=pixels.shape), side / 8, mode="reflect")
        moved.append(grid + field * (0.02 * side / max(float(np.abs(field).max()), 1e-9)))
    return _grey(map_coordinates(pixels.astype(np.float32), moved, order=1, mode="nearest"))


def _after(*changes: Change) -> Change:
    def change(pixels: Pixels, random: np.random.Generator) -> Pixels:
        for each in changes:
            pixels = each(pixels, random)
        return pixels

    return change


CHANGES: dict[str, Change] = {
    "unchanged": lambda pixels, random: pixels,
    "flip": _flipped,
    "crop to 90 %": _cropped(0.9),
    "crop to 75 %": _cropped(0.75),
    "rotation 7 degrees": _rotated(7.0),
    "rotation 15 degrees": _rotated(15.0),
    "noise 15": _noisy(15.0),
    "noise 30": _noisy(30.0),
    "JPEG 20": _jpeg(20),
    "gamma .7": _gamma(0.7),
    "gamma 1.4": _gamma(1.4),
    "blur 2": _blurred(2.0),
    "blur 4": _blurred(4.0),
    "inverted": _inverted,
    "bent": _bent,
    "flip, crop to 90 %, noise 10": _after(_flipped, _cropped(0.9), _noisy(10.0)),
    "rotation 7 degrees, crop to 90 %": _after(_rotated(7.0), _cropped(0.9)),
}
HALF = "left half"  # of the source, beside the right half of another image


def kinds() -> tuple[str, ...]:
    """The names of all kinds of copies."""
    return *CHANGES, HALF


def half_of(source: Pixels, other: Pixels) -> Pixels:
    """The left half of one image beside the right half of another of the same size."""
    joined = other.copy()
    half = joined.shape[1] // 2
    joined[:, :half] = source[:, :half]
    return joined


def perturbed(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """The image after a change by lot: what an honest image may have gone through as well as a copy."""
    return CHANGES[str(random.choice(sorted(CHANGES)))](pixels, random)
