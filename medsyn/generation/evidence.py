"""A Selector that is not shown to be better than chance chooses nothing (`selector.require_auroc`)."""

from __future__ import annotations

from pathlib import Path

from medsyn.config import Config
from medsyn.data.images.own_sampling import differences
from medsyn.errors import InputError
from medsyn.generation.write.provenance import sampling
from medsyn.models.cards import lacking, read_card


def require_evidence(config: Config, selector: Path, modality: str) -> None:
    """Raise InputError unless held-out ratings show that a Selector tells good from poor images of a modality."""
    if reason := lacking(config, selector, modality):
        ways = f"more ratings of {modality} would tell; selector.require_auroc=null lets it choose all the same, "
        raise InputError(selector, f"{reason}: {ways}and generation.modes=[baseline] does without it")


def doubts(config: Config, selector: Path, modality: str) -> list[str]:
    """Why the scores of a Selector may mean little for images of a modality, sampled as configured."""
    found = [reason] if (reason := lacking(config, selector, modality)) else []
    others = differences(read_card(selector).sampling, sampling(config.generation))
    if others:
        found.append(f"has only seen generated images that were sampled otherwise: {'; '.join(others)}")
    return found
