"""What a saved scorer says of itself, read without its weights."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from medsyn.errors import InputError
from medsyn.modality_names import base_modality
from medsyn.models.scorers import CONFIG, read_config
from medsyn.models.scores import Card, Threshold


def read_card(directory: Path, wanted: type[nn.Module]) -> Card:
    """The card of the scorer saved in `directory`.

    Raises:
        InputError: it is missing, is something else than a `wanted`, or is damaged.
    """
    try:
        return Card.model_validate(read_config(directory, wanted).get("card") or {})
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InputError(directory / CONFIG, f"its card is damaged ({what})") from None


def known_as(card: Card, modality: str | None) -> str | None:
    """The modality that a scorer knows an image's as: itself, else the one of the five that it is of; else None."""
    if modality is None:
        return None
    return next((name for name in (modality, base_modality(modality)) if name in card.modalities), None)


def threshold_of(card: Card, modality: str | None) -> Threshold | None:
    """From which score images of a modality pass; None where nothing is known of that."""
    name = known_as(card, modality)
    return None if name is None else card.thresholds.get(name)
