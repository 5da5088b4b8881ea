"""The image half of the scorers: the quality metrics of `medsyn.models.quality`, and a network beside them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsyn.config import ScorerSection
from medsyn.models.quality import FEATURES, grey, quality_features

LAST_SIDE = 8  # pixels of a convolutional network's last features
MAX_DEVIATIONS = 5.0  # metrics are clamped to this many deviations from the training images' mean


class Standardise(nn.Module):
    """(x - mean) / deviation, with statistics learnt once from the training rows and saved with the weights."""

    SMALLEST = 1e-6  # deviation of a column that varies at all

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Learn the statistics of rows [N, size]; a column that never varies is left at zero."""
        self.mean.copy_(rows.mean(dim=0))
        deviation = rows.std(dim=0, unbiased=False)
        self.deviation.copy_(torch.where(deviation > self.SMALLEST, deviation, torch.ones_like(deviation)))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [N, size] in deviations from the mean, clamped to +-MAX_DEVIATIONS."""
        return ((rows - self.mean) / self.deviation).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., ICLR 2021) on one grey channel, pre-norm, mean of the patch tokens as output.

    No dropout: it would draw from the global generator, and a resumed training run must repeat bit for bit.
    """

    def __init__(self, section: ScorerSection) -> None:
        super().__init__()
        patches = (section.image_size // section.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(1, section.hidden_dim, section.patch_size, stride=section.patch_size)
        self.position = nn.Parameter(torch.zeros(1, patches, section.hidden_dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        layer = nn.TransformerEncoderLayer(
            section.hidden_dim,
            section.num_heads,
            section.mlp_dim,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # the nested-tensor path is for padded sequences; asking for it with norm_first only draws a warning
        self.layers = nn.TransformerEncoder(layer, section.num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(section.hidden_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images [N, 1, S, S], S = section.image_size, values about -1..1, to [N, hidden_dim]."""
        return self.patches(image).mean(dim=1)

    def patches(self, image: Tensor) -> Tensor:
        """The same of every patch, row by row: [N, patches, hidden_dim]."""
        tokens = self.patch_embedding(image).flatten(2).transpose(1, 2) + self.position
        encoded: Tensor = self.norm(self.layers(tokens))
        return encoded


class MeasuredImage(nn.Module):
    """What both scorers' image sides share: the size of the image, and what its quality metrics say."""

    def __init__(self, image_size: int, hidden_dim: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.standardise = Standardise(len(FEATURES))
        self.metrics = nn.Sequential(nn.Linear(len(FEATURES), hidden_dim), nn.GELU(), nn.LayerNorm(hidden_dim))

    def resize(self, pixels: Tensor) -> Tensor:
        """Resize pixels [N, 3, H, W] to [N, 3, S, S], antialiased; unchanged if they fit already."""
        if pixels.shape[-2:] == (self.image_size, self.image_size):
            return pixels
        size = (self.image_size, self.image_size)
        return functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)

    @torch.no_grad()
    def measure(self, pixels: Tensor) -> Tensor:
        """Quality metrics [N, len(FEATURES)] of pixels [N, 3, H, W] as this encoder sees them."""
        return quality_features(self.resize(pixels))


class Convolutions(nn.Module):
    """A small convolutional network on one grey channel, read by mean, maximum and deviation of its last features.

    The maximum tells that there is a fault somewhere, such as a seam; a mean would thin it out.
    """

    def __init__(self, section: ScorerSection) -> None:
        super().__init__()
        stages = max(2, round(math.log2(section.image_size / LAST_SIDE)))
        widths = [1, *(max(8, section.hidden_dim >> (stages - 1 - stage)) for stage in range(stages))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            # SiLU: the backward pass of torch's GELU after a convolution gives NaN on some CPUs
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(1, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.read = nn.Sequential(nn.Linear(3 * widths[-1], section.hidden_dim), nn.LayerNorm(section.hidden_dim))

    def forward(self, image: Tensor) -> Tensor:
        """Encode images [N, 1, S, S], values about -1..1, to [N, hidden_dim]."""
        seen = self.layers(image).flatten(2)
        deviation = (seen.var(dim=2) + 1e-6).sqrt()  # of a constant, too, with a finite gradient
        pooled = torch.cat([seen.mean(dim=2), seen.amax(dim=2), deviation], dim=1)
        read: Tensor = self.read(pooled)
        return read


class ImageEncoder(MeasuredImage):
    """Pixels to one vector: what the quality metrics measure and, beside it, what a network sees (`encoder`)."""

    def __init__(self, section: ScorerSection) -> None:
        super().__init__(section.image_size, section.hidden_dim)
        self.width = section.hidden_dim * (1 if section.encoder == "none" else 2)
        self.transformer = VisionTransformer(section) if section.encoder == "vit" else None
        self.convolutions = Convolutions(section) if section.encoder == "conv" else None

    @property
    def looks(self) -> bool:
        """Whether it sees more of an image than its metrics."""
        return self.transformer is not None or self.convolutions is not None

    def forward(self, pixels: Tensor, metrics: Tensor | None = None) -> Tensor:
        """One vector per image.

        Args:
            pixels: [N, 3, H, W], values 0..1; anything, where it does not look and the metrics are known.
            metrics: the result of `measure`, if already known: training measures every image once.

        Returns:
            [N, width].
        """
        if self.looks or metrics is None:
            pixels = self.resize(pixels)
        metrics = self.measure(pixels) if metrics is None else metrics
        parts = [self.metrics(self.standardise(metrics))]
        for network in (self.transformer, self.convolutions):
            if network is not None:
                parts.insert(0, network((grey(pixels) - 0.5) / 0.25))
        return torch.cat(parts, dim=1)
