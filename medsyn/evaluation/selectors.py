"""What the Selectors in use say of themselves: the evidence for each, its thresholds, and what it has not seen."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from medsyn.config import Config
from medsyn.data.images.own_sampling import differences
from medsyn.errors import InputError
from medsyn.generation.write.provenance import Sources, quality_threshold, sampling
from medsyn.models.cards import evidence_for, read_card, threshold_of
from medsyn.stage import CampaignDirectory


def describe(config: Config, directory: CampaignDirectory) -> dict[str, dict[str, Any]]:
    """By modality, what is known of the Selector that chooses its images; modalities without one are left out."""
    found = {}
    for modality in config.data.modalities if "filtered" in config.generation.modes else ():
        with suppress(InputError):
            found[modality] = _describe(config, directory, modality)
    return found


def _describe(config: Config, directory: CampaignDirectory, modality: str) -> dict[str, Any]:
    selector = Sources(config, modality, directory).scorers()[0].parent
    card = read_card(selector)
    whose, auroc = evidence_for(card, modality)
    own, used = threshold_of(card, modality), None
    with suppress(InputError):
        used = quality_threshold(config, selector, modality)
    return {
        "evidence_of": whose,  # None: of all modalities together
        "auroc": auroc.model_dump(),
        "calibration_error": card.evidence.calibration_error,
        "threshold": used,
        "own_threshold": None if own is None else own.model_dump(),
        "sampled_otherwise": differences(card.sampling, sampling(config.generation)),
        "has_seen_generated": card.sampling is not None,
    }
