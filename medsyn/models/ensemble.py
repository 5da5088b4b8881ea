"""Several networks, each trained without a part of the data, as one scorer that is calibrated and knows its doubts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medsyn.modality_names import base_modality
from medsyn.models.quality import FEATURES
from medsyn.models.scores import Card, Scores

ANY = 0  # the row of a modality that the scorer was not trained on


class Calibration(nn.Module):
    """Logits to probabilities, sigmoid(slope * logit + shift): the `ANY` row, then one for each modality.

    J. Platt, "Probabilistic outputs for support vector machines" (1999).
    """

    slope: Tensor
    shift: Tensor

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(1 + modalities))
        self.register_buffer("shift", torch.zeros(1 + modalities))

    def forward(self, logits: Tensor, rows: Tensor | int = ANY) -> Tensor:
        """Probabilities of logits [..., N]; `rows` is one row for all, or int64 [N]."""
        return (self.slope[rows] * logits + self.shift[rows]).sigmoid()


class Familiarity(nn.Module):
    """Which images are unlike all that a scorer was trained on, by their quality metrics.

    The squared Mahalanobis distance to the nearest modality's mean, with a common covariance (K. Lee et al., NeurIPS
    2018), above a limit that images of other groups than the statistics' hardly ever reach.
    """

    scale: Tensor
    means: Tensor
    precision: Tensor
    limit: Tensor

    def __init__(self, modalities: int, metrics: int = len(FEATURES)) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(metrics))
        self.register_buffer("means", torch.zeros(max(1, modalities), metrics))
        self.register_buffer("precision", torch.eye(metrics))
        self.register_buffer("limit", torch.tensor(torch.inf))  # until it is known, nothing is unfamiliar

    def distance(self, metrics: Tensor) -> Tensor:
        """Squared distance [N] of quality metrics [N, len(FEATURES)] to the nearest mean."""
        offsets = (metrics[:, None] - self.means) / self.scale
        return ((offsets @ self.precision) * offsets).sum(dim=-1).amin(dim=1)

    def forward(self, metrics: Tensor) -> Tensor:
        """Whether each of N images is unfamiliar: bool [N], from quality metrics [N, len(FEATURES)]."""
        return self.distance(metrics) > self.limit


class Ensemble(nn.Module):
    """What a Selector and a Policy share: members whose logits are calibrated and averaged."""

    def __init__(self, members: Iterable[nn.Module], card: Card | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.card = card or Card()
        self.calibration = Calibration(len(self.card.modalities))
        self.familiarity = Familiarity(len(self.card.modalities))

    def row_of(self, modality: str | None) -> int:
        """The row of the calibration for a modality; `ANY` for one that is unknown."""
        known = self.card.modalities
        names = [] if modality is None else [modality, base_modality(modality)]  # Brain MRI, else MRI
        return next((1 + known.index(name) for name in names if name in known), ANY)

    def combine(self, logits: Tensor, metrics: Tensor, modality: str | None = None) -> Scores:
        """The scores of N images of one modality, from the members' logits [members, N] and quality metrics [N, …]."""
        scores = self.calibration(logits, self.row_of(modality))
        return Scores(scores.mean(dim=0), scores.std(dim=0, unbiased=False), self.familiarity(metrics))
