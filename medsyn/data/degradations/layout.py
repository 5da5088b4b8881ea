"""Parts of the picture that are missing, in the wrong place, or another picture's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medsyn.data.degradations.filters import coordinates, field, turned


def missing_part(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A rectangle of up to 80 % of both sides is black, grey or white."""
    down, across = coordinates(picture)
    row, column = rng.uniform(-0.5, 0.5, 2)
    level = float(rng.choice([0.0, 0.5, 1.0]))
    inside = ((down - row).abs() < 0.8 * strength) & ((across - column).abs() < 0.8 * strength)
    return torch.where(inside, torch.full_like(picture, level), picture)


def cut_off(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """The picture ends early, up to after a fifth: what follows is its last line, black or grey."""
    if turned(picture, rng):
        return _cut(picture.transpose(-1, -2), strength, rng).transpose(-1, -2)
    return _cut(picture, strength, rng)


def _cut(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    height = picture.shape[-2]
    last = max(1, height - round(0.8 * strength * height))
    repeat, level = rng.random() < 0.5, float(rng.choice([0.0, 0.5]))
    filler = picture[..., last - 1 : last, :] if repeat else torch.full_like(picture[..., :1, :], level)
    rest = filler.expand(*picture.shape[:-2], height - last, picture.shape[-1])
    return torch.cat([picture[..., :last, :], rest], dim=-2)


def lost_lines(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Single lines are black: up to 60 % of them."""
    along = turned(picture, rng)
    side = picture.shape[-1 if along else -2]
    lost = field(rng.random(side)) < 0.6 * strength
    return picture * (1 - (lost.view(1, -1) if along else lost.view(-1, 1)).float())


def shuffled(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Patches of a grid of 2 to 8 a side change places, in the end all of them."""
    grid = int(rng.choice([2, 3, 4, 6, 8]))
    height, width = (side // grid * grid for side in picture.shape[-2:])
    tiles = picture[..., :height, :width].unflatten(-1, (grid, -1)).unflatten(-3, (grid, -1))
    tiles = tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)  # [grid * grid, C, h, w]
    order = rng.permutation(grid * grid)
    chosen = order[: max(2, round(strength * grid * grid))] if strength > 0 else order[:0]
    place = np.arange(grid * grid)
    place[chosen] = np.roll(chosen, 1)
    tiles = tiles[torch.from_numpy(place)].unflatten(0, (grid, grid)).permute(2, 0, 3, 1, 4)
    out = picture.clone()
    out[..., :height, :width] = tiles.flatten(3, 4).flatten(1, 2)
    return out


def torn(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A band of lines, up to the rest of the picture, is shifted along itself by up to half the side."""
    along = turned(picture, rng)
    image = picture.transpose(-1, -2) if along else picture
    height, width = image.shape[-2:]
    first = int(rng.uniform(0.15, 0.6) * height)
    last = int(first + rng.uniform(0.2, 1.0) * height)
    shift = round(rng.choice([-1, 1]) * 0.5 * strength * width)
    out = image.clone()
    out[..., first:last, :] = torch.roll(image[..., first:last, :], shift, dims=-1)
    return out.transpose(-1, -2) if along else out


def fold_over(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Aliasing of a field of view that is too small: each border, up to half of the picture, lies over the other."""
    axis = -1 if turned(picture, rng) else -2
    side = picture.shape[axis]
    reach = round(0.5 * strength * side)
    if reach == 0:
        return picture
    out = picture.clone()
    first, last = picture.narrow(axis, 0, reach), picture.narrow(axis, side - reach, reach)
    out.narrow(axis, 0, reach).add_(last)
    out.narrow(axis, side - reach, reach).add_(first)
    return out


def stitched(picture: Tensor, strength: float, rng: np.random.Generator, other: Tensor) -> Tensor:
    """From a straight line on it is another picture: up to two thirds of it."""
    axis = -1 if turned(picture, rng) else -2
    flip = bool(rng.random() < 0.5)
    side = picture.shape[axis]
    place = torch.arange(side) if not flip else torch.arange(side).flip(0)
    theirs = (place < round(0.67 * strength * side)).view((-1,) if axis == -1 else (-1, 1))
    return torch.where(theirs, other, picture)
