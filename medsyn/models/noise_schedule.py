"""The noise schedule that a fine-tuned UNet belongs to: the base model's, or what fine-tuning makes of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.config import Config, FinetuneSection
from medsyn.errors import CONFIGURATION, InputError, Problem
from medsyn.models import model_folder, weights
from medsyn.schedulers import SOLVERS

ZERO_SNR = "rescale_betas_zero_snr"  # diffusers' name for a schedule that ends in pure noise
_EPSILON, _VELOCITY = "epsilon", "v_prediction"


def trained_with(base: Mapping[str, Any], section: FinetuneSection) -> dict[str, Any]:
    """The base model's scheduler configuration with what fine-tuning changes in it.

    With zero terminal SNR (Lin et al., WACV 2024) sampling has to begin at the last timestep, where there is nothing
    but noise: `trailing` steps do. DDIM knows of both; the model's own sampler may not.
    """
    settings = dict(base)
    if section.prediction_type is not None:
        settings["prediction_type"] = section.prediction_type
    if section.zero_terminal_snr:
        settings |= {ZERO_SNR: True, "timestep_spacing": "trailing", "_class_name": "DDIMScheduler"}
    return settings


def write_beside(unet_parent: Path, base: Mapping[str, Any], section: FinetuneSection) -> None:
    """Write the scheduler's configuration into the folder that holds `unet/`, if fine-tuning has changed it."""
    settings = trained_with(base, section)
    if settings != dict(base):
        (unet_parent / "scheduler").mkdir(exist_ok=True)
        disk.write_json(unet_parent / "scheduler" / "scheduler_config.json", settings)


def problems(config: Config) -> list[Problem]:
    """What fine-tuning and sampling cannot do with the schedule; nothing where the model cannot be read."""
    source, section = config.model_paths.described_by, config.finetune
    if weights.locate(source) is None:
        return []
    try:
        base = model_folder.scheduler_config(source)
    except InputError:  # what checks the weights has told it
        return []
    return wrong_target(base, section) + _wrong_sampler(trained_with(base, section), config)


def wrong_target(base: Mapping[str, Any], section: FinetuneSection) -> list[Problem]:
    """What cannot be trained: without signal at the last timestep, epsilon says nothing about the image."""
    settings = trained_with(base, section)
    if not settings.get(ZERO_SNR) or settings.get("prediction_type", _EPSILON) == _VELOCITY:
        return []
    reason = (
        "with zero terminal SNR the last timestep is pure noise, and predicting that noise says nothing of the image: "
        f"set {_VELOCITY}, to which the model is then trained over"
    )
    return [Problem(CONFIGURATION, reason, key="finetune.prediction_type")]


def _wrong_sampler(settings: Mapping[str, Any], config: Config) -> list[Problem]:
    name = config.generation.scheduler
    if not settings.get(ZERO_SNR) or SOLVERS[name].zero_snr:
        return []
    able = ", ".join(each for each, solver in SOLVERS.items() if solver.zero_snr)
    reason = f"{name} cannot begin at zero terminal SNR, with which the model is trained: take one of {able}"
    return [Problem(CONFIGURATION, reason, key="generation.scheduler")]
