"""The Policy: how well an image shows what its prompt says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsyn.config import PolicySection, ScorerSection
from medsyn.models.ensemble import Ensemble
from medsyn.models.image_encoder import MeasuredImage, Standardise
from medsyn.models.scores import Card, Scores
from medsyn.models.text_gate import CHANNELS, GRID, ConvGrid, Places, TextGate, ViTGrid

NETWORK = 2  # raise it when the same section builds other weights
SEEN = GRID * GRID * CHANNELS  # numbers that a text looks at


class PolicyImage(MeasuredImage):
    """Pixels to one vector: features at every place of a grid, and the quality metrics."""

    def __init__(self, section: PolicySection) -> None:
        super().__init__(section.image_size, section.hidden_dim)
        self.grid = {"conv": ConvGrid, "vit": ViTGrid}[section.encoder](section)
        self.places = Places(self.grid.width)
        self.width = SEEN + section.hidden_dim

    def forward(self, pixels: Tensor, metrics: Tensor | None = None) -> Tensor:
        """One vector per image, [N, width]; arguments as for `ImageEncoder`."""
        pixels = self.resize(pixels)
        metrics = self.measure(pixels) if metrics is None else metrics
        return torch.cat([self.places(self.grid(pixels)), self.metrics(self.standardise(metrics))], dim=1)


class PolicyMember(nn.Module):
    """One network of the Policy.

    The text side is the pooled output of the synthetic system's frozen CLIP text encoder. It says what to look at, and
    where (`TextGate`); the quality metrics say how well that can be seen.
    """

    def __init__(self, section: PolicySection, text_dim: int) -> None:
        super().__init__()
        width = section.hidden_dim
        self.image = PolicyImage(section)
        self.standardise_text = Standardise(text_dim)
        self.gate = TextGate(text_dim, width)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def align(self, image: Tensor, pooled_text: Tensor) -> Tensor:
        """Logits [N] of image vectors [N, image.width] under pooled text features [N, text_dim]."""
        found = self.gate(image[:, :SEEN], self.standardise_text(pooled_text.float()))
        logits: Tensor = self.head(torch.cat([found, image[:, SEEN:]], dim=1)).squeeze(1)
        return logits

    def forward(self, pixels: Tensor, pooled_text: Tensor, metrics: Tensor | None = None) -> Tensor:
        """Logits [N] of pixels [N, 3, H, W], values 0..1; for `metrics` see `ImageEncoder`."""
        return self.align(self.image(pixels, metrics), pooled_text)


class Policy(Ensemble):
    """Prompt-image alignment 0..1: the rating an expert would give this image for this prompt, from 1..3 to 0..1."""

    def __init__(self, section: ScorerSection, text_dim: int, card: Card | None = None) -> None:
        """A section that is not a Policy's own stands for one with the default encoder."""
        if not isinstance(section, PolicySection):
            section = PolicySection(**section.model_dump(exclude={"encoder"}))
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
        image: PolicyImage = self.members[0].image
        pixels = image.resize(pixels)
        return pixels, image.measure(pixels) if metrics is None else metrics
