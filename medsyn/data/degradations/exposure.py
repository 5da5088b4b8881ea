"""Too much light, too little, or not the same everywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medsyn.data.degradations.filters import coordinates, smooth_field


def clipping(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A gain of up to 20: bright parts lose their structure. What is dark enough is only brightened."""
    return picture * 20**strength


def crushed_shadows(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Dark parts become black: all below a level of up to 90 % of the brightest."""
    level = 0.9 * strength * picture.max()
    return (picture - level) / (1 - level).clamp(min=0.05)


def dimming(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Underexposed: as little as 3 % of the light."""
    return picture * 0.03**strength


def low_contrast(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A veil of one grey level that hides up to 97 % of the contrast."""
    return picture + 0.97 * strength * (rng.uniform(0.2, 0.8) - picture)


def uneven_light(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """The light (or a coil's sensitivity) falls off across the picture, along a line or in smooth patches."""
    down, across = coordinates(picture)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (down * np.sin(angle) + across * np.cos(angle)) / 2.83 + 0.5
    patches = smooth_field(picture, rng, int(rng.integers(1, 4)))
    shade = slope if rng.random() < 0.5 else patches
    bright = 1.0 if rng.random() < 0.5 else 0.0  # parts are also brighter, or only darker
    return picture * (1 + strength * (bright * (1 - shade) - shade))


def glare(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A reflection: a bright spot with soft edges, anywhere."""
    down, across = coordinates(picture)
    row, column, size = rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.2, 0.7)
    spot = torch.exp(-((down - row).square() + (across - column).square()) / (2 * size**2))
    return picture + 1.5 * strength * spot


def vignetting(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Dark towards the border, from a centre that need not be the picture's."""
    down, across = coordinates(picture)
    row, column = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)
    radius = (down - row).square() + (across - column).square()
    return picture * torch.exp(-6 * strength * radius)
