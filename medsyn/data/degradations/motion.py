"""What moves while the image is taken."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medsyn.data.degradations.filters import blurred, field, frequencies, moved, turned


def motion(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Smeared along a line of any direction, up to 30 % of the side long."""
    angle = rng.uniform(0, np.pi)
    height, width = picture.shape[-2:]
    length = 0.3 * strength * min(height, width)
    pad = int(np.ceil(length / 2)) + 1
    padded = functional.pad(picture[None], (pad, pad, pad, pad), mode="replicate")[0]
    down, across = frequencies(*padded.shape[-2:])
    transfer = torch.sinc(length * (down * np.sin(angle) + across * np.cos(angle)))
    back = torch.fft.irfft2(torch.fft.rfft2(padded) * transfer, s=padded.shape[-2:])
    return back[..., pad : pad + height, pad : pad + width]


def ghosting(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Fainter copies of the picture beside itself, as of a periodic movement: wrapped around its border."""
    axis = -1 if turned(picture, rng) else -2
    side = picture.shape[axis]
    shift = max(1, round(rng.uniform(0.06, 0.5) * side))
    copies = sum(torch.roll(picture, sign * shift, dims=axis) for sign in (-1, 1)) / 2
    return picture + 0.7 * strength * (copies - 0.3 * picture)


def scan_motion(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """The patient moved during an MRI scan: blocks of k-space lines were taken of a shifted picture."""
    along = turned(picture, rng)
    image = picture.transpose(-1, -2) if along else picture
    height, width = image.shape[-2:]
    blocks = rng.standard_normal((24, 2))
    which = np.sort(rng.integers(0, 24, height)) if height >= 24 else np.arange(height)
    shift = field(blocks[which] * strength * 0.08 * min(height, width))
    shift[0] = 0  # the mean of the picture stays where it is
    down, across = torch.fft.fftfreq(height).view(-1, 1), torch.fft.fftfreq(width).view(1, -1)
    phase = torch.exp(-2j * torch.pi * (down * shift[:, :1] + across * shift[:, 1:]))
    image = torch.fft.ifft2(torch.fft.fft2(image) * phase).abs()
    return image.transpose(-1, -2) if along else image


def line_jitter(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Lines taken one after the other do not join: each is shifted along itself by up to 15 % of the side."""
    along = turned(picture, rng)
    side = picture.shape[-1 if along else -2]
    walk = field(rng.standard_normal((1, 1, side)))
    walk = blurred(walk, rng.uniform(0, 2.0))
    shift = (walk / (walk.abs().max() + 1e-6)).flatten() * strength * 0.15 * side
    zero = torch.zeros(1, 1)
    return moved(picture, shift.view(1, -1), zero) if along else moved(picture, zero, shift.view(-1, 1))
