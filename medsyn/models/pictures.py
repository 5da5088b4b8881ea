"""From decoded pixels to the pictures that are scored and written, on the device that decoded them."""

from __future__ import annotations

import torch
from torch import Tensor

from medsyn.modality_names import COLOUR_MODALITIES, base_modality


def quantise_all(pixels: Tensor, modality: str) -> Tensor:
    """`medsyn.generation.write.png.quantise` of many images, bit for bit, without leaving the device.

    Args:
        pixels: [N, 3, H, W] in 0..1, finite.
        modality: grey or colour.

    Returns:
        uint8 [N, H, W, 1 or 3].
    """
    if base_modality(modality) not in COLOUR_MODALITIES:
        red, green, blue = pixels.split(1, dim=1)
        # a tensor: on a GPU the division by a number is a multiplication by its reciprocal, which differs
        pixels = (red + green + blue) / pixels.new_full((1,), 3)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
