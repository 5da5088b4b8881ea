"""Several versions of a training image, slightly turned, enlarged and of other contrast; each encoded once.

A version is a function of the campaign's seed, the image's pixels and its number, so that latents can be kept. Mirrored
versions, where they are asked for, are for images none of whose captions names a side.
"""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medsyn.config import AugmentSection
from medsyn.seeds import seed

# words that name a side of the body or of the picture, in the languages of most captions
_SIDES = re.compile(
    r"\b(left|right|l|r|lt|rt|od|os|lateral\w*|ipsilateral\w*|contralateral\w*|bilateral\w*|unilateral\w*"
    r"|link\w*|recht\w*|gauche\w*|droit\w*|izquierd\w*|derech\w*|sinistr\w*|destr\w*|dextr\w*|esquerd\w*|direit\w*)\b"
    r"|situs|[左右]|лев|прав",
    re.IGNORECASE,
)


def names_a_side(caption: str) -> bool:
    """Whether a caption says left or right, so that a mirrored image would contradict it."""
    return _SIDES.search(caption) is not None


def versions(section: AugmentSection, pixels: Tensor, campaign_seed: int) -> list[Tensor]:
    """The versions of an image, the first of which is itself; with `mirror` all of them once more, mirrored.

    Args:
        section: with `versions` set.
        pixels: [1, 3, R, R] in 0..1, on the CPU.
        campaign_seed: the campaign's.
    """
    digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    made = [pixels]
    for number in range(1, section.versions or 1):
        rng = np.random.default_rng(seed("augment", campaign_seed, digest, number))
        made.append(_vary(pixels, section, rng))
    return made + [version.flip(-1) for version in made] if section.mirror else made


def _vary(pixels: Tensor, section: AugmentSection, rng: np.random.Generator) -> Tensor:
    """Turn and scale about the centre, then change the contrast about the mean; what comes in at the edge is reflected.

    Nothing is mirrored or moved from side to side.
    """
    turn, zoom, contrast = rng.uniform(-1, 1, 3)
    angle = math.radians(section.rotation * turn)
    scale = 1 / (1 + section.zoom * zoom)
    affine = scale * torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = functional.affine_grid(affine[None], list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    mean = moved.mean()
    return ((moved - mean) * (1 + section.contrast * contrast) + mean).clamp(0, 1)
