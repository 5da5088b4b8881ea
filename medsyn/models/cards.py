"""What a saved scorer says of itself, read without its weights and without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.modality_names import base_modality
from medsyn.models.scores import Card, Interval, Threshold
from medsyn.models.weights import SCORER_CONFIG


def read_card(directory: Path) -> Card:
    """The card of the scorer saved in `directory`; raises InputError if it has none that can be read."""
    try:
        described = disk.read_json(directory / SCORER_CONFIG)
        return Card.model_validate(described["card"])
    except OSError as error:
        raise InputError(directory, f"is not a saved scorer: {SCORER_CONFIG}: {error.strerror}") from None
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InputError(directory / SCORER_CONFIG, f"its card is damaged ({what})") from None
    except (ValueError, KeyError, TypeError):
        reason = "is no scorer of this version: it says nothing of its thresholds and its evidence; train it again"
        raise InputError(directory, reason) from None


def known_as(card: Card, modality: str | None) -> str | None:
    """The modality that a scorer knows an image's as: itself, else the one of the five that it is of; else None."""
    if modality is None:
        return None
    return next((name for name in (modality, base_modality(modality)) if name in card.modalities), None)


def evidence_for(card: Card, modality: str | None) -> tuple[str | None, Interval]:
    """(whose, AUROC): how well held-out ratings of a modality are told apart; of all (None) where it has too few."""
    name = known_as(card, modality)
    own = None if name is None else card.evidence.by_modality.get(name)
    if own is not None and own.low is not None:
        return name, own
    return None, card.evidence.auroc


def lacking(config: Config, selector: Path, modality: str) -> str | None:
    """Why a Selector is not to choose images of a modality (`selector.require_auroc`); None if it may."""
    least = config.selector.require_auroc
    if least is None:
        return None
    whose, found = evidence_for(read_card(selector), modality)
    what = f"held-out ratings of {whose or 'all modalities together'}"
    must = f"and selector.require_auroc is {least:g}"
    if found.value is None or found.low is None:
        return f"nothing shows that it tells good images of {modality} from poor ones: too few {what}, {must}"
    if found.low > least:
        return None
    figure = f"its AUROC on {what} is {found.value:.2f}, 95 % interval {found.low:.2f} to {found.high or 1:.2f}"
    return f"{figure}, from {found.n} groups of images: not shown to be above {least:g} (selector.require_auroc)"


def threshold_of(card: Card, modality: str | None) -> Threshold | None:
    """From which score images of a modality pass; None where nothing is known of that."""
    name = known_as(card, modality)
    return None if name is None else card.thresholds.get(name)
