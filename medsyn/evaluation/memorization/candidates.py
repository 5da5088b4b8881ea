"""Which real images might be the source of an image: dot products of cheap descriptors, of many windows of each.

A copy may be cropped, turned or half of another image. One vector of a whole image does not find those; vectors of
windows do (docs/memorization.md has figures).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform
from skimage.feature import hog

from medsyn.evaluation.memorization.maps import SIDE, Maps, band

_COARSE = 1.5, 4.0, 6.0  # standard deviations of the band, in pixels
_CELLS = 16  # of the small copy of a band, per side
_BY_BAND, _BY_GRADIENTS, _BY_HALVES = 10, 10, 5  # the best candidates of each descriptor
_QUERIES_AT_ONCE = 64


@dataclass(frozen=True)
class Window:
    """A part of an image: `scale` of its side, turned by `angle` degrees, its centre `down` and `right` of its own."""

    angle: float = 0.0
    scale: float = 1.0
    down: float = 0.0
    right: float = 0.0

    def of(self, image: np.ndarray) -> np.ndarray:
        """What it shows of `image` [S, S], as large as that."""
        if self == Window():
            return image
        turn, side = np.deg2rad(self.angle), len(image)
        matrix = self.scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = np.full(2, (side - 1) / 2)
        offset = centre - matrix @ centre + side * np.array([self.down, self.right])
        shown: np.ndarray = affine_transform(image, matrix, offset, order=1, mode="nearest")
        return shown


def _windows() -> list[Window]:
    turned = [Window(angle) for angle in (0.0, -5.0, 5.0, -10.0, 10.0, -15.0, 15.0)]
    moved = [Window(0.0, 0.9, down, right) for down in (-0.06, 0.06) for right in (-0.06, 0.06)]
    both = [Window(angle, 0.9) for angle in (-7.0, 7.0)]
    cropped = [Window(0.0, 0.75, down, right) for down in (-0.17, 0.0, 0.17) for right in (-0.17, 0.0, 0.17)]
    return [*turned, *moved, *both, *cropped]


WINDOWS = tuple(_windows())  # the first one is the whole image


@dataclass(frozen=True)
class Descriptors:
    """Vectors of unit length."""

    bands: np.ndarray  # float32 [W, 256], of each window
    gradients: np.ndarray  # float32 [W, 576], likewise
    halves: np.ndarray  # float32 [4, 128]: the left, right, upper and lower half of the whole image


def describe(maps: Maps, windows: Sequence[Window] = WINDOWS) -> Descriptors:
    """The descriptors of some windows of an image, the first of which is the whole."""
    shown = [window.of(maps.grey) for window in windows]
    bands = [_small(band(image, *_COARSE)) for image in shown]
    gradients = [hog(image, 9, (SIDE // 8, SIDE // 8), (1, 1)) for image in shown]
    return Descriptors(_unit(np.stack([each.ravel() for each in bands])), _unit(np.stack(gradients)), _halves(bands[0]))


def _small(image: np.ndarray) -> np.ndarray:
    """The means of _CELLS x _CELLS cells."""
    cell = len(image) // _CELLS
    small: np.ndarray = image.reshape(_CELLS, cell, _CELLS, cell).mean(axis=(1, 3))
    return small


def _halves(small: np.ndarray) -> np.ndarray:
    half = _CELLS // 2
    return _unit(np.stack([part.ravel() for part in (small[:, :half], small[:, half:], small[:half], small[half:])]))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows less their mean, of length one."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)


@dataclass(frozen=True)
class Candidates:
    """Places of images that may be a query's source."""

    everything: list[int]  # at most 25
    by_halves: list[int]  # those of which a half is like the query's, the likeliest first


class Index:
    """Descriptors of I real images; 73 kB each."""

    def __init__(self, images: Iterable[Maps]) -> None:
        described = [describe(image) for image in images]
        self._bands = np.stack([each.bands for each in described])  # [I, W, 256]
        self._gradients = np.stack([each.gradients for each in described])
        self._halves = np.stack([each.halves for each in described])  # [I, 4, 128]

    def candidates(self, queries: Sequence[Maps], excluded: np.ndarray) -> list[Candidates]:
        """The candidates of each query among the images.

        Args:
            queries: Q of them.
            excluded: bool [Q, I], the images that a query is not asked about.
        """
        found: list[Candidates] = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            found += self._some(queries[part], excluded[part])
        return found

    def _some(self, queries: Sequence[Maps], excluded: np.ndarray) -> list[Candidates]:
        both = [describe(image, WINDOWS[:1]) for query in queries for image in (query, query.flipped())]
        bands = self._best(self._bands, np.concatenate([each.bands for each in both]), absolute=True)
        gradients = self._best(self._gradients, np.concatenate([each.gradients for each in both]))
        halves = np.max(
            [
                np.abs(np.stack([each.halves[place] for each in both]) @ self._halves[:, place].T)
                for place in range(self._halves.shape[1])
            ],
            axis=0,
        )
        ways = (bands, _BY_BAND), (gradients, _BY_GRADIENTS), (halves, _BY_HALVES)
        chosen = []
        for number, out in enumerate(excluded):
            places = []
            for values, most in ways:
                value = np.where(out, -np.inf, values[2 * number : 2 * number + 2].max(axis=0))
                best = np.argsort(-value, kind="stable")[:most]
                places.append(best[np.isfinite(value[best])])
            everything = list(dict.fromkeys(np.concatenate(places).tolist()))
            chosen.append(Candidates(everything, places[-1].tolist()))
        return chosen

    @staticmethod
    def _best(windows: np.ndarray, queries: np.ndarray, absolute: bool = False) -> np.ndarray:
        """The best similarity [Q, I] of queries [Q, D] to any window of each image [I, W, D]."""
        similar = queries @ windows.reshape(-1, windows.shape[-1]).T
        if absolute:  # an inverted copy
            np.abs(similar, out=similar)
        best: np.ndarray = similar.reshape(len(queries), *windows.shape[:2]).max(axis=2)
        return best
