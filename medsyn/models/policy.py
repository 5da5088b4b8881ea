"""The Policy: how well an image shows what its prompt says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsyn.config import ScorerSection
from medsyn.models.ensemble import Ensemble
from medsyn.models.image_encoder import ImageEncoder, Standardise
from medsyn.models.scores import Card, Scores


class PolicyMember(nn.Module):
    """One network of the Policy.

    The text side is the pooled output of the synthetic system's frozen CLIP text encoder. Both sides meet as their
    concatenation and their product, which makes it easy for one image to rise with one prompt and fall with another.
    """

    def __init__(self, section: ScorerSection, text_dim: int) -> None:
        super().__init__()
        width = section.hidden_dim
        self.image = ImageEncoder(section)
        self.image_projection = nn.Linear(self.image.width, width)
        self.standardise_text = Standardise(text_dim)
        self.text_projection = nn.Linear(text_dim, width)
        self.head = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))

    def align(self, image: Tensor, pooled_text: Tensor) -> Tensor:
        """Logits [N] of image vectors [N, image.width] under pooled text features [N, text_dim]."""
        image = self.image_projection(image)
        text = self.text_projection(self.standardise_text(pooled_text.float()))
        logits: Tensor = self.head(torch.cat([image, text, image * text], dim=1)).squeeze(1)
        return logits

    def forward(self, pixels: Tensor, pooled_text: Tensor, metrics: Tensor | None = None) -> Tensor:
        """Logits [N] of pixels [N, 3, H, W], values 0..1; for `metrics` see `ImageEncoder`."""
        return self.align(self.image(pixels, metrics), pooled_text)


class Policy(Ensemble):
    """Prompt-image alignment 0..1: the rating an expert would give this image for this prompt, from 1..3 to 0..1."""

    def __init__(self, section: ScorerSection, text_dim: int, card: Card | None = None) -> None:
        super().__init__((PolicyMember(section, text_dim) for _ in range(section.members)), card)
        self.section = section
        self.text_dim = text_dim

    def forward(self, pixels: Tensor, pooled_text: Tensor, metrics: Tensor | None = None) -> Tensor:
        """Logits of every member [members, N]; arguments as for `PolicyMember`."""
        pixels, metrics = self._seen(pixels, metrics)
        return torch.stack([member(pixels, pooled_text, metrics) for member in self.members])

    @torch.no_grad()
    def score(self, pixels: Tensor, pooled_text: Tensor, modality: str | None = None) -> Scores:
        """Scores of pixels [N, 3, H, W], values 0..1, under pooled text features [N, text_dim]; all of one modality."""
        pixels, metrics = self._seen(pixels, None)
        return self.combine(self(pixels, pooled_text, metrics), metrics, modality)

    def _seen(self, pixels: Tensor, metrics: Tensor | None) -> tuple[Tensor, Tensor]:
        """The image as all members see it, and its metrics: once for all of them."""
        image: ImageEncoder = self.members[0].image
        pixels = image.resize(pixels)
        return pixels, image.measure(pixels) if metrics is None else metrics
