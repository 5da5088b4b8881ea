"""A Selector that is not shown to be better than chance chooses nothing (`selector.require_auroc`)."""

from __future__ import annotations

from pathlib import Path

from medsyn.config import Config
from medsyn.data.images.own_sampling import differences
from medsyn.errors import InputError
from medsyn.generation.write.provenance import sampling
from medsyn.models.cards import evidence_for, read_card


def require_evidence(config: Config, selector: Path, modality: str) -> None:
    """Raise InputError unless held-out ratings show that a Selector tells good from poor images of a modality."""
    if reason := lacking(config, selector, modality):
        ways = f"more ratings of {modality} would tell; selector.require_auroc=null lets it choose all the same, "
        raise InputError(selector, f"{reason}: {ways}and generation.modes=[baseline] does without it")


def lacking(config: Config, selector: Path, modality: str) -> str | None:
    """Why a Selector is not to choose images of a modality; None if it may."""
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


def doubts(config: Config, selector: Path, modality: str) -> list[str]:
    """Why the scores of a Selector may mean little for images of a modality, sampled as configured."""
    found = [reason] if (reason := lacking(config, selector, modality)) else []
    others = differences(read_card(selector).sampling, sampling(config.generation))
    if others:
        found.append(f"has only seen generated images that were sampled otherwise: {'; '.join(others)}")
    return found
