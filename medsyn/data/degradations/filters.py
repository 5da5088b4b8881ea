"""What several kinds of damage are made with: filters in the frequency domain, smooth fields, sampling off the grid.

A picture is float32 [C, H, W], values 0..1, and a damage gets a strength, 0 (none) to 1, and a random generator. What
it draws does not depend on the strength: the same generator gives the same damage, only more of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def field(values: np.ndarray | float) -> Tensor:
    """float32 tensor of an array of any shape."""
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def coordinates(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [H, 1] and columns [1, W] of a picture, both -1..1."""
    height, width = picture.shape[-2:]
    return torch.linspace(-1, 1, height).view(-1, 1), torch.linspace(-1, 1, width).view(1, -1)


def frequencies(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cycles per pixel of `torch.fft.rfft2`, down [H, 1] and across [1, W // 2 + 1]."""
    return torch.fft.fftfreq(height).view(-1, 1), torch.fft.rfftfreq(width).view(1, -1)


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """The picture under a Gaussian of `sigma` pixels; edges are continued."""
    if sigma < 0.05:
        return picture
    radius = int(np.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = functional.pad(picture[:, None], (radius, radius, radius, radius), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.transpose(2, 3))[:, 0]


def smooth_field(picture: Tensor, rng: np.random.Generator, cells: int) -> Tensor:
    """A smooth random field [H, W], 0..1, of `cells` x `cells` bumps."""
    coarse = field(rng.standard_normal((1, 1, cells + 2, cells + 2)))
    fine = functional.interpolate(coarse, picture.shape[-2:], mode="bicubic", align_corners=True)[0, 0]
    return (fine - fine.min()) / (fine.max() - fine.min() + 1e-6)


def moved(picture: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """The picture sampled `down` and `across` pixels away (each broadcasts to [H, W]); edges are continued."""
    height, width = picture.shape[-2:]
    rows = torch.arange(height, dtype=torch.float32).view(-1, 1) + down
    columns = torch.arange(width, dtype=torch.float32).view(1, -1) + across
    rows, columns = torch.broadcast_tensors(2 * rows / (height - 1) - 1, 2 * columns / (width - 1) - 1)
    grid = torch.stack([columns, rows], dim=-1)[None]
    return functional.grid_sample(picture[None], grid, padding_mode="border", align_corners=True)[0]


def turned(picture: Tensor, rng: np.random.Generator) -> bool:
    """Whether a damage that runs along rows runs along columns instead: an even chance."""
    return bool(rng.random() < 0.5)
