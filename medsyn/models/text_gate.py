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
    """A small convolutional network: a quarter of the picture's side at once, then halves, until GRID places are left.

    At full and at half the side such a network spends three quarters of its time and learns nothing more
    (docs/scorers.md).
    """

    def __init__(self, section: ScorerSection) -> None:
        super().__init__()
        halvings = max(1, round(math.log2(section.image_size / GRID)) - 2)
        widths = [3, *(max(4, section.hidden_dim >> max(0, 2 - stage)) for stage in range(1 + halvings))]
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            if number == 0:
                convolution = nn.Conv2d(inputs, outputs, 4, stride=4)
            # SiLU: the backward pass of torch's GELU after a convolution gives NaN on some CPUs
            layers += [convolution, nn.GroupNorm(math.gcd(4, outputs), outputs), nn.SiLU()]
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


class Places(nn.Module):
    """What texts can look at: CHANNELS of the features at every place, once for all texts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channels = nn.Linear(width, CHANNELS)

    def forward(self, seen: Tensor) -> Tensor:
        """Features [N, places, width] as [N, places * CHANNELS]."""
        looked_at: Tensor = self.channels(self.norm(seen))
        return looked_at.flatten(1)


class TextGate(nn.Module):
    """A text looks at an image: it weighs every channel at every place, and a small network reads what is left."""

    def __init__(self, text_dim: int, hidden_dim: int, places: int = GRID * GRID) -> None:
        super().__init__()
        size = CHANNELS * places
        self.gate = nn.Linear(text_dim, size)
        self.read = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, hidden_dim), nn.SiLU())

    def forward(self, looked_at: Tensor, text: Tensor) -> Tensor:
        """What N texts [N, text_dim], standardised, find in what `Places` gives of N images: [N, hidden_dim]."""
        found: Tensor = self.read(looked_at * self.gate(text))
        return found
