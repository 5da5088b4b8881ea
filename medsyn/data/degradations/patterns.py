"""Regular patterns over the picture that no anatomy makes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medsyn.data.degradations.filters import blurred, coordinates, field, turned


def stripes(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Parallel stripes of one width, in any direction: grid lines, mains hum, a spike in k-space."""
    height, width = picture.shape[-2:]
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    period = np.exp(rng.uniform(np.log(2.0), np.log(min(height, width) / 4)))
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    place = rows * np.sin(angle) + columns * np.cos(angle)
    return picture + 0.5 * strength * torch.sin(2 * torch.pi * place / period + rng.uniform(0, 2 * np.pi))


def banding(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Lines, or bands of several, that are brighter or darker than their neighbours."""
    along = turned(picture, rng)
    side = picture.shape[-1 if along else -2]
    bands = blurred(field(rng.standard_normal((1, 1, side))), rng.choice([0.0, 1.0, 3.0])).flatten()
    bands = 0.3 * strength * bands / (bands.std() + 1e-6)
    return picture + (bands.view(1, -1) if along else bands.view(-1, 1))


def rings(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Rings around the middle: a detector element of a CT that is off."""
    down, across = coordinates(picture)
    side = min(picture.shape[-2:])
    profile = field(rng.standard_normal(2 * side))
    radius = (torch.hypot(down, across) * side / 2).long().clamp(max=2 * side - 1)
    return picture + 0.4 * strength * profile[radius]


def streaks(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Bright and dark rays from one point: metal in a CT."""
    down, across = coordinates(picture)
    row, column = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6)
    angle = torch.atan2(down - row, across - column)
    rays = torch.zeros_like(angle)
    for number in rng.integers(3, 40, 6):
        rays = rays + torch.cos(int(number) * angle + rng.uniform(0, 2 * np.pi)) / 2
    return picture + 0.6 * strength * rays * torch.exp(-torch.hypot(down - row, across - column))


def checkerboard(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A grid of few pixels, as a decoder's upsampling leaves it, where there is signal."""
    height, width = picture.shape[-2:]
    size = int(rng.choice([1, 2, 4]))
    rows, columns = torch.arange(height).view(-1, 1) // size, torch.arange(width).view(1, -1) // size
    board = 1.0 - 2.0 * ((rows + columns) % 2)
    return picture + 0.5 * strength * board * (0.3 + picture)
