"""Lay one image upon another: which turn, size, shift and flip of it fits best, and how well it fits then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates

from medsyn.evaluation.memorization.maps import SIDE, Maps

_ANGLES = tuple(range(-16, 17, 4))  # degrees
_SHOWN = 1.08, 1.0, 0.92, 0.84, 0.76  # of the source's side
_LIKENESS, _AFFINE, _FINE = 6, 3, 4  # Gauss-Newton steps of a similarity, of an affine map, and of one on the fine map
_LEAST_WEIGHT, _WINDOW = 0.05, 3.0  # of a pixel, by how well its neighbourhood (a Gaussian, in pixels) fits
_LEAST_SEEN = 0.15  # of the source's tissue that must be inside the image
_LEAST_GAIN = 2e-3  # of the correlation, in a step that is followed by another
_RIDGE = 1e-3

HALVES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Fit:
    """Where an image looks for what a source shows at x: at matrix (x - centre) + shift, in pixels of SIDE x SIDE."""

    flip: bool
    matrix: np.ndarray  # [2, 2]
    shift: np.ndarray  # [2]
    sign: float  # -1: inverted
    peak: float = 0.0  # how well it fitted before it was refined

    def at(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Where an image of that side looks, [side, side] each: down, right."""
        centre, grid = (side - 1) / 2, np.arange(side) - (side - 1) / 2
        down, right = np.meshgrid(grid, grid, indexing="ij")
        (a, b), (c, d) = self.matrix
        shift = self.shift * side / SIDE
        return a * down + b * right + shift[0] + centre, c * down + d * right + shift[1] + centre


UNMOVED = Fit(False, np.eye(2), np.zeros(2), 1.0)


@dataclass(frozen=True)
class Similarity:
    """How well an image fits that is laid upon a source, as `evidence`."""

    whole: dict[str, float]  # by band: mid, plain, coarse, fine
    halves: dict[str, float]  # of each half, the mean of three bands


class Query:
    """An image that may be a copy, ready to be laid upon others."""

    def __init__(self, maps: Maps) -> None:
        self.sides = maps, maps.flipped()

    @cached_property
    def _turned(self) -> tuple[list[tuple[bool, np.ndarray]], np.ndarray, np.ndarray]:
        """Every way to turn and resize it, the spectra of what is seen then, and their lengths."""
        ways, spectra, lengths = [], [], []
        centre = np.full(2, (SIDE - 1) / 2)
        for flip, angle, shown in product((False, True), _ANGLES, _SHOWN):
            turn = np.deg2rad(angle)
            matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / shown
            seen = affine_transform(self.sides[flip].matched, matrix, centre - matrix @ centre, order=1)
            ways.append((flip, matrix))
            spectra.append(rfft2(seen))
            lengths.append(float(np.linalg.norm(seen)))
        return ways, np.stack(spectra).astype(np.complex64), np.maximum(lengths, 1e-6)

    def coarsely(self, source: Maps) -> Fit:
        """The best of many fits: every turn, size and flip with every shift, by its normalised correlation."""
        ways, spectra, lengths = self._turned
        target = source.matched * source.mask
        correlation = irfft2(spectra * rfft2(target).astype(np.complex64).conj(), s=target.shape)
        flat = np.abs(correlation).reshape(len(ways), -1)
        places = flat.argmax(axis=1)
        peaks = flat[np.arange(len(ways)), places] / lengths / max(float(np.linalg.norm(target)), 1e-6)
        best = int(peaks.argmax())
        flip, matrix = ways[best]
        found = np.array(np.unravel_index(places[best], target.shape), dtype=np.float64)
        moved = np.where(found > SIDE / 2, found - SIDE, found)
        sign = float(np.sign(correlation[best].flat[places[best]])) or 1.0
        return Fit(flip, matrix, matrix @ moved, sign, float(peaks[best]))

    def refined(self, source: Maps, fit: Fit) -> Fit:
        """The fit after Gauss-Newton steps, on the small map and then on the fine one."""
        maps = self.sides[fit.flip]
        fit = _steps(maps.matched, source.matched, source.mask, fit, _LIKENESS, affine=False)
        fit = _steps(maps.matched, source.matched, source.mask, fit, _AFFINE, affine=True)
        return _steps(maps.fine, source.fine, _resized(source.mask, len(source.fine)), fit, _FINE, affine=True)

    def compared(self, source: Maps, fit: Fit) -> Similarity:
        """How well they fit, in the whole and in each half."""
        maps = self.sides[fit.flip]
        pairs = {
            "mid": (maps.matched, source.matched),
            "plain": (maps.plain[0], source.plain[0]),
            "coarse": (maps.plain[1], source.plain[1]),
            "fine": (maps.fine, source.fine),
        }
        whole, halves = {}, dict.fromkeys(HALVES, 0.0)
        for name, (image, target) in pairs.items():
            if image.shape != target.shape:  # one of them is too small for the fine map
                image, target = maps.matched, source.matched
            side = len(image)
            mask = _resized(source.mask, side)
            where = fit.at(side)
            inside = mask & np.all([(each >= 0) & (each <= side - 1) for each in where], axis=0)
            seen = fit.sign * map_coordinates(image, where, order=1, mode="nearest")
            whole[name] = evidence(_correlation(seen, target, inside, mask))
            if name != "coarse":
                for half, part in _parts(side).items():
                    halves[half] += evidence(_correlation(seen, target, inside & part, mask & part)) / 3
        return Similarity(whole, halves)


def evidence(correlation: float) -> float:
    """-ln(1 - NCC), as far as one image of finite size can tell."""
    return float(-np.log(1 - min(correlation, 1.0) + 0.002))


def _steps(image: np.ndarray, target: np.ndarray, mask: np.ndarray, fit: Fit, steps: int, affine: bool) -> Fit:
    """Gauss-Newton steps on maps [S, S]; those that make it worse are not taken."""
    if image.shape != target.shape:
        return fit
    side = len(image)
    slope = np.gradient(image)
    grid = np.arange(side) - (side - 1) / 2
    down, right = (each[mask] for each in np.meshgrid(grid, grid, indexing="ij"))
    best, best_value = fit, -np.inf
    for step in range(steps + 1):
        where = fit.at(side)
        inside = np.all([(each >= 0) & (each <= side - 1) for each in where], axis=0)
        seen = fit.sign * map_coordinates(image, where, order=1, mode="nearest")
        value = _correlation(seen, target, inside & mask, mask)
        gain, best_value = value - best_value, max(value, best_value)
        if gain > 0:
            best = fit
        if step == steps or gain < _LEAST_GAIN:
            break
        weight = (_local(seen, target) * inside)[mask]
        points = np.stack([each[mask] for each in where])
        gy, gx = (fit.sign * map_coordinates(each, points, order=1, mode="nearest") for each in slope)
        columns = [gy, gx]
        if affine:
            columns += [gy * down, gy * right, gx * down, gx * right]
        else:
            columns += [gy * down + gx * right, gx * down - gy * right]
        jacobian = np.stack(columns, axis=1)
        weighted = jacobian * weight[:, None]
        normal = weighted.T @ jacobian
        normal += _RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal)) + 1e-9 * np.eye(len(normal))
        move = np.linalg.solve(normal, weighted.T @ (target - seen)[mask])
        change = move[2:].reshape(2, 2) if affine else np.array([[move[2], -move[3]], [move[3], move[2]]])
        fit = Fit(fit.flip, fit.matrix + change, fit.shift + move[:2] * SIDE / side, fit.sign, fit.peak)
    return best


def _local(seen: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The weight of each pixel: how well its neighbourhood fits."""
    both = gaussian_filter(seen * target, _WINDOW)
    each = gaussian_filter(seen**2, _WINDOW) * gaussian_filter(target**2, _WINDOW)
    weight: np.ndarray = np.maximum(both / np.sqrt(each + 1e-6), _LEAST_WEIGHT) ** 2
    return weight


def _correlation(seen: np.ndarray, target: np.ndarray, inside: np.ndarray, mask: np.ndarray) -> float:
    """Pearson's correlation of what is inside; 0 where that is too little of the mask."""
    if inside.sum() < max(16, _LEAST_SEEN * mask.sum()):
        return 0.0
    first, second = seen[inside], target[inside]
    first, second = first - first.mean(), second - second.mean()
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length > 1e-9 else 0.0


def _resized(mask: np.ndarray, side: int) -> np.ndarray:
    times = side // len(mask)
    return mask if times == 1 else mask.repeat(times, axis=0).repeat(times, axis=1)


@cache
def _parts(side: int) -> dict[str, np.ndarray]:
    half = np.arange(side) < side // 2
    rows, columns = np.broadcast_to(half[:, None], (side, side)), np.broadcast_to(half[None, :], (side, side))
    return dict(zip(HALVES, (columns, ~columns, rows, ~rows), strict=True))
