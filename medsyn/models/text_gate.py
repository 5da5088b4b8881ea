"""Where in an image is what a text speaks of: image sides that keep positions, and how a text reads them.

A mean over patches cannot tell left from right, and a product of one image vector with one text vector has too few
pairs of (what, where) to tell findings apart. Here the image stays a grid of features, and the text sets a gate of its
own for every channel at every place of the grid.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from medsyn.config import ScorerSection
from medsyn.models.image_encoder import VisionTransformer
from medsyn.models.quality import grey

GRID = 4  # places per side at which a text looks at an image
CHANNELS = 16  # that it looks at, of each place


class ConvGrid(nn.Module):
    """A small convolutional network: halves the picture until GRID places per side are left."""

    def __init__(self, section: ScorerSection) -> None:
        super().__init__()
        stages = max(1, round(math.log2(section.image_size / GRID)))
        self.width = section.hidden_dim
        widths = [3, *(max(4, self.width >> max(0, 2 - stage)) for stage in range(stages))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            groups = math.gcd(4, outputs)
            # SiLU: the backward pass of torch's GELU after a convolution gives NaN on some CPUs
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(groups, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, GRID * GRID, width] of pixels [N, 3, S, S], values 0..1, row by row."""
        seen = functional.adaptive_avg_pool2d(self.layers(pixels * 2 - 1), GRID)
        return seen.flatten(2).transpose(1, 2)


class ViTGrid(nn.Module):
    """A vision transformer (`VisionTransformer`) whose patches are pooled to a grid."""

    def __init__(self, section: ScorerSection) -> None:
        super().__init__()
        self.width = section.hidden_dim
        self.transformer = VisionTransformer(section)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, GRID * GRID, width] of pixels [N, 3, S, S], values 0..1, row by row."""
        patches = self.transformer.patches((grey(pixels) - 0.5) / 0.25).transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        return functional.adaptive_avg_pool2d(patches.unflatten(2, (side, side)), GRID).flatten(2).transpose(1, 2)


class TextGate(nn.Module):
    """A text looks at an image: it weighs every channel at every place, and a small network reads what is left."""

    def __init__(self, width: int, text_dim: int, hidden_dim: int, places: int = GRID * GRID) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channels = nn.Linear(width, CHANNELS)
        self.gate = nn.Linear(text_dim, CHANNELS * places)
        self.read = nn.Sequential(nn.LayerNorm(CHANNELS * places), nn.Linear(CHANNELS * places, hidden_dim), nn.SiLU())

    def forward(self, seen: Tensor, text: Tensor) -> Tensor:
        """What N texts [N, text_dim], standardised, find in features [N, places, width]: [N, hidden_dim]."""
        found: Tensor = self.read(self.channels(self.norm(seen)).flatten(1) * self.gate(text))
        return found
