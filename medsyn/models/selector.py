"""The Selector: how good an image is, whatever it shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsyn.config import ScorerSection
from medsyn.models.image_encoder import ImageEncoder


class Selector(nn.Module):
    """Image quality 0..1: the probability that an expert rates the image acceptable or excellent."""

    def __init__(self, section: ScorerSection) -> None:
        super().__init__()
        self.section = section
        self.image = ImageEncoder(section)
        self.head = nn.Sequential(
            nn.Linear(self.image.width, section.hidden_dim), nn.GELU(), nn.Linear(section.hidden_dim, 1)
        )

    def forward(self, pixels: Tensor, metrics: Tensor | None = None) -> Tensor:
        """Logits [N] of pixels [N, 3, H, W], values 0..1; for `metrics` see `ImageEncoder`."""
        logits: Tensor = self.head(self.image(pixels, metrics)).squeeze(1)
        return logits

    @torch.no_grad()
    def score(self, pixels: Tensor) -> Tensor:
        """Quality 0..1, [N], of pixels [N, 3, H, W], values 0..1."""
        return self(pixels).sigmoid()
