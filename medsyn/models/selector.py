"""The Selector: how good an image is, whatever it shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsyn.config import ScorerSection
from medsyn.models.ensemble import Ensemble
from medsyn.models.image_encoder import ImageEncoder
from medsyn.models.scores import Card, Scores


class SelectorMember(nn.Module):
    """One network of the Selector."""

    def __init__(self, section: ScorerSection) -> None:
        super().__init__()
        self.image = ImageEncoder(section)
        self.head = nn.Sequential(
            nn.Linear(self.image.width, section.hidden_dim), nn.GELU(), nn.Linear(section.hidden_dim, 1)
        )

    def forward(self, pixels: Tensor, metrics: Tensor | None = None) -> Tensor:
        """Logits [N] of pixels [N, 3, H, W], values 0..1; for `metrics` see `ImageEncoder`."""
        logits: Tensor = self.head(self.image(pixels, metrics)).squeeze(1)
        return logits


class Selector(Ensemble):
    """Image quality 0..1: the probability that an expert rates the image acceptable or excellent."""

    def __init__(self, section: ScorerSection, card: Card | None = None) -> None:
        super().__init__((SelectorMember(section) for _ in range(section.members)), card)
        self.section = section

    def forward(self, pixels: Tensor, metrics: Tensor | None = None) -> Tensor:
        """Logits of every member [members, N]; arguments as for `SelectorMember`."""
        pixels, metrics = self._seen(pixels, metrics)
        return torch.stack([member(pixels, metrics) for member in self.members])

    @torch.no_grad()
    def score(self, pixels: Tensor, modality: str | None = None) -> Scores:
        """Scores of pixels [N, 3, H, W], values 0..1, that are images of one modality, or of any."""
        pixels, metrics = self._seen(pixels, None)
        return self.combine(self(pixels, metrics), metrics, modality)

    def _seen(self, pixels: Tensor, metrics: Tensor | None) -> tuple[Tensor, Tensor]:
        """The image as all members see it, and its metrics: once for all of them."""
        image: ImageEncoder = self.members[0].image
        if image.looks or metrics is None:
            pixels = image.resize(pixels)
        return pixels, image.measure(pixels) if metrics is None else metrics
