"""What a scorer says about images, and what is known about the scorer itself: the words that all rooms share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """N images as an ensemble sees them."""

    score: Tensor  # [N], 0..1, the calibrated mean of the members
    spread: Tensor  # [N], standard deviation of the members' calibrated scores
    unfamiliar: Tensor  # bool [N], far from every image that the scorer was trained on


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(_Part):
    """A figure with its 95 % interval, from `n` independent groups of images; None where it cannot be said."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = Field(0, ge=0)


# what decided a threshold: rated images, the generated ones among them, or what the generator samples without raters
Basis = Literal["rated", "rated samples", "samples"]


class Threshold(_Part):
    """The score from which images of a modality pass, chosen on scores of members that had not seen them."""

    threshold: float = Field(ge=0, le=1)
    basis: Basis = "rated"
    good: int = Field(ge=0)  # rated images it was chosen on, and
    poor: int = Field(ge=0)
    good_passing: float | None = None  # the share of the modality's that passes
    poor_passing: float | None = None
    samples: int = Field(0, ge=0)  # of the modality's generator, sampled as the campaign does, and
    spoilt: int = Field(0, ge=0)  # badly on purpose
    samples_passing: float | None = None
    spoilt_passing: float | None = None


class Evidence(_Part):
    """What held-out ratings say about a scorer: every score is of members that were not trained on its group."""

    auroc: Interval = Interval()
    by_modality: dict[str, Interval] = {}
    calibration_error: float | None = None


class Card(_Part):
    """What a saved scorer says of itself, beside its shape: the part of `config.json` that others read."""

    modalities: list[str] = []  # it was trained on, in the order of its calibration's rows
    thresholds: dict[str, Threshold] = {}  # by modality; a Selector's only
    evidence: Evidence = Evidence()
    sampling: dict[str, Any] | None = (
        None  # the settings that its generated images were sampled with; None: it saw none
    )
