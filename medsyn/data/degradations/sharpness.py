"""Too little detail, or too much of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medsyn.data.degradations.filters import blurred, frequencies


def blur(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Out of focus: a Gaussian of up to 8 % of the side."""
    return blurred(picture, 0.08 * strength * min(picture.shape[-2:]))


def low_resolution(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Sampled on fewer pixels, down to 6 a side, and enlarged: smoothly or as squares."""
    mode = "bilinear" if rng.random() < 0.5 else "nearest"
    height, width = picture.shape[-2:]
    rows, columns = (max(6, round(side * (6 / side) ** strength)) for side in (height, width))
    small = functional.interpolate(picture[None], (rows, columns), mode="bilinear", antialias=True)
    return functional.interpolate(small, (height, width), mode=mode)[0]


def sharpening(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Unsharp masking until edges have halos."""
    sigma = rng.uniform(0.7, 2.0)
    return picture + 8 * strength * (picture - blurred(picture, sigma))


def ringing(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Gibbs ringing: high frequencies are missing altogether, down to a sixteenth of the band."""
    height, width = picture.shape[-2:]
    pad = min(height, width) // 4  # else opposite edges of the picture would ring, too
    padded = functional.pad(picture[None], (pad, pad, pad, pad), mode="replicate")[0]
    down, across = frequencies(*padded.shape[-2:])
    limit = 0.5 * (1 / 16) ** strength
    # a soft edge of one frequency: the amount of change grows without steps
    width_of_edge = 1 / min(padded.shape[-2:])
    kept = ((limit - down.abs()) / width_of_edge + 1).clamp(0, 1)
    kept = kept * ((limit - across.abs()) / width_of_edge + 1).clamp(0, 1)
    back = torch.fft.irfft2(torch.fft.rfft2(padded) * kept, s=padded.shape[-2:])
    return back[..., pad : pad + height, pad : pad + width]
