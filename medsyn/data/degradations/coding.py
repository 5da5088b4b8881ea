"""What goes wrong where pixels are stored or sent."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional


def jpeg(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """JPEG down to quality 1."""
    levels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    stored = PillowImage.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    stored.save(stream, "JPEG", quality=max(1, round(96 * (1 - strength) ** 2)))
    read = np.array(PillowImage.open(stream)).reshape(levels.shape)
    return torch.from_numpy(read).permute(2, 0, 1).float() / 255


def quantisation(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Few grey levels, down to two."""
    steps = 255 ** (1 - strength)
    return (picture * steps).round() / steps


def wrap_around(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """16-bit values cast to 8 bits: what is over white starts again at black."""
    return torch.remainder(picture.clamp(0, 1) * 0.9999 * 4**strength, 1.0)


def damaged_blocks(picture: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Blocks of a compressed stream that could not be decoded: flat, in up to all of the picture."""
    height, width = picture.shape[-2:]
    size = int(rng.choice([4, 8, 16]))
    rows, columns = -(-height // size), -(-width // size)
    order = torch.from_numpy(rng.random((rows, columns)).astype(np.float32))
    padded = functional.pad(picture[None], (0, columns * size - width, 0, rows * size - height), mode="replicate")
    flat = functional.avg_pool2d(padded, size)[0]
    big = torch.stack([flat, order.expand_as(flat)]).repeat_interleave(size, -1).repeat_interleave(size, -2)
    values, lost = big[..., :height, :width]
    return torch.where(lost < strength, values, picture)
