"""Noise of several origins. A grey picture stays grey; every channel of a coloured one has its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medsyn.data.degradations.filters import blurred, field


def noise(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """White Gaussian noise with a standard deviation of up to half the range."""
    return picture + 0.5 * strength * field(rng.standard_normal(picture.shape))


def coarse_noise(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Gaussian noise whose grains are a few pixels wide."""
    size = rng.uniform(0.6, 2.5)
    grains = blurred(field(rng.standard_normal(picture.shape)), size)
    return picture + 0.5 * strength * grains / (grains.std() + 1e-6)


def rician_noise(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Noise of an MRI magnitude image: of a complex number, so that it brightens the background."""
    real, imaginary = (0.5 * strength * field(rng.standard_normal(picture.shape)) for _ in range(2))
    return torch.hypot(picture + real, imaginary)


def speckle(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Noise of a coherent source (OCT): as strong as the signal."""
    return picture * (1 + 2 * strength * field(rng.standard_normal(picture.shape)))


def quantum_noise(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Too few photons: noise that grows as the square root of the signal."""
    return picture + strength * picture.clamp(min=0).sqrt() * field(rng.standard_normal(picture.shape))


def salt_and_pepper(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Single pixels are black or white: up to 40 % of them."""
    size = picture.shape[-2:]
    order, white = field(rng.random(size)), field(rng.random(size)) < 0.5
    return torch.where(order < 0.4 * strength, white.float(), picture)


def static(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """The picture gives way to white noise, until nothing else is left."""
    return picture + strength * (field(rng.random(picture.shape)) - picture)
