"""The settings that a generator starts from: those of the campaign that made the models it is given."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsyn.config import Config, load
from medsyn.errors import InputError, InputProblems, Problem
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


def campaign_of(given: Mapping[str, Any]) -> tuple[Path | None, str]:
    """The campaign directory with the UNet (else the Policy, else the Selector), and the argument that named it."""
    for argument in _MODELS:
        value = given.get(argument)
        if isinstance(value, (str, Path)) and str(value).strip():
            with suppress(OSError):  # a name that is too long, say: told where the model is looked for
                if directory := campaign_above(Path(value)):
                    return directory, argument
    return None, ""
