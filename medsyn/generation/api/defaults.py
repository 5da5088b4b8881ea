"""The settings that a generator starts from: those of the campaign that made the models it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsyn.config import Config, load
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.generation.write.provenance import Sources
from medsyn.stage import CampaignDirectory, campaign_above

_MODELS = ("finetuned", "policy", "selector")


def origin(given: Mapping[str, Any]) -> tuple[Config | None, list[Problem]]:
    """The configuration of the campaign that made the models among the arguments, and what is wrong with it.

    A UNet that was fine-tuned at some resolution and scorers that were calibrated for some sampler are of use only with
    these settings, so a single prompt has them unless it says otherwise.
    """
    directory, argument = campaign_of(given)
    if directory is None:
        return None, []
    try:
        return load(CampaignDirectory(directory).config, environment={}), []
    except (InputError, InputProblems) as error:
        return None, [Problem(argument, f"its campaign cannot be read: {one}") for one in error.problems]


def models_of(given: Mapping[str, Any], modality_of: Callable[[Config], str]) -> dict[str, Path]:
    """Where an argument names a campaign's own directory: the models that it has for a modality.

    Args:
        given: the arguments.
        modality_of: the modality of what is to be made, in a campaign of this configuration.

    Raises:
        InputError: the campaign cannot be read, or has not made such a model; its source is the argument.
        InputProblems: as `modality_of`.
    """
    found: dict[str, Path] = {}
    for argument in _MODELS:
        value = given.get(argument)
        if not isinstance(value, (str, Path)) or not _is_campaign(Path(value)):
            continue
        try:
            config = load(CampaignDirectory(Path(value)).config, environment={})
            sources = Sources(config, modality_of(config), CampaignDirectory(Path(value).absolute()))
            unet = sources.unet("filtered") if argument == "finetuned" else None
            found[argument] = unet or sources.scorers()[argument == "policy"].parent
        except InputError as error:
            raise InputError(argument, f"{error.problem.source} {error.problem.reason}") from None
    return found


def _is_campaign(path: Path) -> bool:
    try:
        return campaign_above(path) == path.absolute()
    except OSError:  # a name that is too long, say: told where the model is looked for
        return False


def campaign_of(given: Mapping[str, Any]) -> tuple[Path | None, str]:
    """The campaign directory with the UNet (else the Policy, else the Selector), and the argument that named it."""
    for argument in _MODELS:
        value = given.get(argument)
        if isinstance(value, (str, Path)) and str(value).strip():
            with suppress(OSError):  # a name that is too long, say: told where the model is looked for
                if directory := campaign_above(Path(value)):
                    return directory, argument
    return None, ""
