"""Those checks of `medsyn.Generator`'s arguments that need a disk or a device: weights that fit, a GPU, a size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsyn.arms import MODES, filters
from medsyn.config import EMBEDDED, Config, DeviceSection
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.generation.api.defaults import origin
from medsyn.generation.api.options import configuration, modality_of, mode_of
from medsyn.generation.evidence import require_evidence
from medsyn.generation.write.provenance import Sources, common
from medsyn.modality_names import MODALITIES
from medsyn.models import model_folder, weights
from medsyn.models.device import Device, choose_device
from medsyn.models.policy import Policy
from medsyn.models.scorers import read_config
from medsyn.models.selector import Selector
from medsyn.stage import CampaignDirectory

DEFAULT_SIDE, EMBEDDED_SIDE = 256, 64  # pixels
LEAST_SIDE, MOST_SIDE, SIDE_STEP = 32, 1024, 8  # pixels; the VAE makes one latent of 8 x 8


@dataclass(frozen=True)
class Settings:
    """The checked settings of a generator: everything exists and fits together."""

    config: Config
    mode: str  # one of `medsyn.arms.MODES`
    modality: str | None  # None: any
    unet: Path | None  # directory that holds a fine-tuned `unet/`
    selector: Path | None
    policy: Path | None
    device: Device
    height: int  # pixels
    width: int
    provenance: Mapping[str, Any]  # recorded with every image, whatever its modality and device


def given_settings(given: Mapping[str, Any]) -> Settings:
    """Resolve the arguments of `medsyn.Generator` to settings.

    Raises:
        InputProblems: everything wrong with them, each problem named by its argument.
        BadNode: a GPU was assigned to this process but cannot be used.
    """
    campaign, found = origin(given)
    config, wrong = configuration(given, campaign)
    found += wrong
    model = given.get("model", campaign.model_paths.stable_diffusion if campaign else EMBEDDED)
    base = _base(found, model)
    unet = _unet(found, given.get("finetuned"), base)
    selector, policy = (_scorer(found, name, given.get(name), base) for name in ("selector", "policy"))
    trained = [model_folder.trained_chunks(directory) for directory in (unet, base) if directory is not None]
    if config is not None and (chunks := next((known for known in trained if known is not None), None)) is not None:
        data = config.data.model_copy(update={"text_chunks": chunks if chunks > 1 else None})
        config = config.model_copy(update={"data": data})  # a model reads what it has learned to read
    default = EMBEDDED_SIDE if str(model) == EMBEDDED else DEFAULT_SIDE
    default = campaign.data.resolution if campaign else default
    height = _side(found, "height", given.get("height"), default)
    width = _side(found, "width", given.get("width"), height)
    chosen = _device(found, given.get("device", "auto"), config)
    if found:
        raise InputProblems(dict.fromkeys(found))
    assert config is not None and chosen is not None
    mode, models = mode_of(given), (unet, selector, policy)
    model = weights.model_fingerprint(config.model_paths.stable_diffusion, weights.unet_sha256(unet), unet)
    known = common(config, "", mode, model)
    return Settings(config, mode, None, *models, chosen, height, width, known)


def campaign_settings(config: Config, modality: Any, mode: Any) -> Settings:
    """The settings of a campaign's `generate` task.

    Raises:
        InputProblems: `modality` or `mode` is unknown, or the pretrained weights are missing.
        InputError: the campaign has not made the models yet.
        BadNode: a GPU was assigned to this process but cannot be used.
    """
    if not isinstance(config, Config):
        raise InputProblems([Problem("config", f"must be a campaign's configuration, got {config!r:.100}")])
    found = model_folder.problems(config.model_paths.stable_diffusion)
    name = modality_of(found, modality, config.data.modalities or MODALITIES)
    if mode not in MODES:
        found.append(Problem("mode", f"must be one of {', '.join(MODES)}, got {mode!r:.100}"))
    elif config.arm(mode).weights == "aligned" and not config.align.enabled:
        found.append(Problem("mode", f"is {mode}, but this campaign aligns no model (align.enabled)"))
    if found or name is None:
        raise InputProblems(found)
    sources = Sources(config, name, CampaignDirectory(config.campaign.path))
    known, side = sources.facts(mode), config.data.resolution
    selector, policy = (file.parent for file in sources.scorers()) if filters(mode) else (None, None)
    if selector is not None:
        require_evidence(config, selector, name)
    models = sources.unet(mode), selector, policy
    return Settings(config, mode, name, *models, choose_device(config.device), side, side, known)


def _base(found: list[Problem], model: Any) -> Path | None:
    """The directory of the pretrained weights, or None if they cannot be used."""
    if not isinstance(model, (str, Path)) or not str(model).strip():
        return None  # reported by the configuration
    problems = model_folder.problems(str(model))
    found += [Problem("model", f"{one.source}: {one.reason}") for one in problems]
    return None if problems else weights.locate(str(model))


def _path(found: list[Problem], argument: str, value: Any) -> Path | None:
    if value is None:
        return None
    if isinstance(value, (str, Path)) and str(value).strip():
        return Path(value)
    found.append(Problem(argument, f"must be a directory, got {value!r:.100}"))
    return None


def _unet(found: list[Problem], finetuned: Any, base: Path | None) -> Path | None:
    """The directory that contains the fine-tuned `unet/`: the one given, or its parent if it is `unet/` itself."""
    given = _path(found, "finetuned", finetuned)
    if given is None:
        return None
    for directory in (given, given.parent):
        if (directory / "unet" / "diffusion_pytorch_model.safetensors").is_file():
            if base is not None:
                _check_fit(found, base, directory / "unet")
            return directory
    found.append(Problem("finetuned", f"{given} does not contain unet/diffusion_pytorch_model.safetensors"))
    return None


def _check_fit(found: list[Problem], base: Path, unet: Path) -> None:
    try:
        reason = model_folder.wrong_network(unet) or model_folder.misfit(base, unet)
    except InputError as error:
        reason = error.problem.reason
    if reason:
        found.append(Problem("finetuned", f"{unet}: {reason}"))


def _scorer(found: list[Problem], argument: str, value: Any, base: Path | None) -> Path | None:
    """The directory of a trained scorer; a Policy must expect as many text features as the model produces."""
    directory = _path(found, argument, value)
    if directory is None:
        return None
    try:
        described = read_config(directory, Selector if argument == "selector" else Policy)
        features = None if base is None else model_folder.text_features(base)
    except InputError as error:
        found.append(Problem(argument, f"{error.problem.source} {error.problem.reason}"))
        return directory
    if argument == "policy" and features not in (None, described.get("text_dim")):
        reason = f"{directory} expects {described.get('text_dim')} text features but the model produces {features}"
        found.append(Problem(argument, f"{reason}: it was trained with a different model"))
    return directory


def _side(found: list[Problem], argument: str, pixels: Any, default: int) -> int:
    if pixels is None:
        return default
    whole = isinstance(pixels, int) and not isinstance(pixels, bool)
    if whole and LEAST_SIDE <= pixels <= MOST_SIDE and pixels % SIDE_STEP == 0:
        return int(pixels)
    reason = f"must be a multiple of {SIDE_STEP} from {LEAST_SIDE} to {MOST_SIDE}, got {pixels!r:.100}"
    found.append(Problem(argument, reason))
    return default


def _device(found: list[Problem], name: Any, config: Config | None) -> Device | None:
    """The named device, in the requested precision."""
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,4}))?", name) if isinstance(name, str) else None
    if match is None:
        found.append(Problem("device", f"must be auto, cpu or cuda:N, got {name!r:.100}"))
        return None
    section = config.device if config is not None else DeviceSection(use_cuda=name != "cpu")
    number = int(match[1] or 0) if name.startswith("cuda") else None
    try:
        return choose_device(section, number)
    except InputError as error:
        found.append(
            Problem("precision" if error.problem.key == "device.precision" else "device", error.problem.reason)
        )
    return None
