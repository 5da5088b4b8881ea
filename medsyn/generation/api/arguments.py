"""What a `medsyn.Generator` is asked for, checked before a model is loaded: everything wrong at once.

A problem's place (`Problem.source`) is the name of the argument; the command line turns it into that of its flag.

The prompts that a `medsyn.Generator` is asked for, held to what the rows of a prompt list are held to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medsyn.config import EMBEDDED, MOST_IMAGES, Config, DeviceSection, validate
from medsyn.data.modalities import canonical_modality, not_a_modality
from medsyn.data.prompts.rows import PromptRow, read_texts, wrong_negative
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.generation.block_store import Item
from medsyn.models import weights
from medsyn.models.device import Device, choose_device
from medsyn.models.policy import Policy
from medsyn.models.scorers import read_config
from medsyn.models.selector import Selector
from medsyn.schedulers import wrong_steps
from medsyn.text import did_you_mean

DEFAULT_SIDE, EMBEDDED_SIDE = 256, 64  # pixels
LEAST_SIDE, MOST_SIDE, SIDE_STEP = 32, 1024, 8  # pixels; the VAE makes one latent of 8 x 8
MOST_TOGETHER = 1024  # candidates in a batch

SAMPLING = ("scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "negative_prompt", "batch_size")
FILTERING = ("quality_threshold", "num_candidates", "min_policy_score", "max_attempts", "on_exhausted")
GENERATION = (*SAMPLING, "batches_per_block", *FILTERING)  # keys of the configuration's section `generation`
_ARGUMENT_OF = {
    "campaign.seed": "seed",
    "model_paths.stable_diffusion": "model",
    "device.precision": "precision",
    "device": "device",
}


@dataclass(frozen=True)
class Settings:
    """What a generator is made from: all of it is there and fits together."""

    config: Config
    mode: Literal["baseline", "filtered"]  # filtered: with scorers
    unet: Path | None  # directory that holds a fine-tuned `unet/`
    selector: Path | None
    policy: Path | None
    device: Device
    height: int  # pixels
    width: int


class Found:
    """Problems as they are found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, argument: str, reason: str) -> None:
        """Something is wrong with an argument."""
        self.problems.append(Problem(argument, reason))

    def require_none(self) -> None:
        """Raise InputProblems if anything was found."""
        if self.problems:
            raise InputProblems(dict.fromkeys(self.problems))


def check_settings(arguments: Mapping[str, Any], generation: Mapping[str, Any]) -> Settings:
    """The settings that the arguments of `medsyn.Generator` mean; `generation` are those of that name.

    Raises:
        InputProblems: everything that is wrong with them, each by the name of its argument.
        BadNode: a GPU was handed to this process and cannot be used.
    """
    found = Found()
    filtered = arguments["selector"] is not None or arguments["policy"] is not None
    _check_names(found, generation, filtered)
    for absent, given in (("selector", "policy"), ("policy", "selector")):
        if arguments[absent] is None and arguments[given] is not None:
            found.add(absent, "is not given: the filter needs both a Selector and a Policy")
    source = str(arguments["model"]) if isinstance(arguments["model"], Path) else arguments["model"]
    config = _configuration(found, {**arguments, "model": source}, filtered, generation)
    base = _base(found, source)
    unet = _unet(found, arguments["finetuned"], base)
    selector, policy = (_scorer(found, name, arguments[name], base) for name in ("selector", "policy"))
    default = EMBEDDED_SIDE if source == EMBEDDED else DEFAULT_SIDE
    height = _side(found, "height", arguments["height"], default)
    width = _side(found, "width", arguments["width"], height)
    chosen = _device(found, arguments["device"], config)
    found.require_none()
    assert config is not None and chosen is not None
    mode: Literal["baseline", "filtered"] = "filtered" if filtered else "baseline"
    return Settings(config, mode, unet, selector, policy, chosen, height, width)


def _check_names(found: Found, generation: Mapping[str, Any], filtered: bool) -> None:
    """Unknown arguments, and those of the filter where there is none."""
    known = (*GENERATION, *_ARGUMENT_OF.values(), "finetuned", "selector", "policy", "height", "width")
    for name in generation:
        if name not in GENERATION:
            found.add(name, f"there is no such argument{did_you_mean(name, known)}")
        elif name in FILTERING and not filtered:
            found.add(name, "belongs to the filter, which needs a Selector and a Policy")


def _configuration(
    found: Found, arguments: Mapping[str, Any], filtered: bool, generation: Mapping[str, Any]
) -> Config | None:
    known = {name: value for name, value in generation.items() if name in GENERATION}
    size = known.get("batch_size", 4)
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MOST_TOGETHER:
        found.add("batch_size", f"a whole number from 1 to {MOST_TOGETHER}, got {size!r:.100}")
        known.pop("batch_size")
    if isinstance(known.get("guidance_interval"), tuple):
        known["guidance_interval"] = list(known["guidance_interval"])
    if "negative_prompt" in known and isinstance(known["negative_prompt"], str):
        found.problems += [Problem("negative_prompt", one) for one in wrong_negative(known["negative_prompt"])]
    section = {"batch_size": 4, "num_candidates": 1, **known, "modes": ["filtered" if filtered else "baseline"]}
    tree = {
        "campaign": {"seed": arguments["seed"]},
        "model_paths": {"stable_diffusion": arguments["model"]},
        "device": {"use_cuda": arguments["device"] != "cpu", "precision": arguments["precision"]},
        "generation": section,
    }
    try:
        return validate(tree, "generator")
    except InputProblems as error:
        for problem in error.problems:
            found.add(_argument(problem, section), problem.reason)
    return None


def _argument(problem: Problem, generation: Iterable[str]) -> str:
    """The argument that a problem of the configuration is about."""
    key = problem.key or ""
    if key in _ARGUMENT_OF:
        return _ARGUMENT_OF[key]
    if key.startswith("generation."):
        return key.split(".")[1]
    return next((name for name in generation if name in problem.reason), "generation")


def _base(found: Found, source: Any) -> Path | None:
    """Where the pretrained weights are, if they can be used."""
    if not isinstance(source, str):
        return None  # its type has been told
    if not source.strip():
        found.add("model", f"`{EMBEDDED}`, a diffusers directory or a hub id, got {source!r}")
        return None
    problems = weights.problems(source)
    found.problems += [Problem("model", f"{one.source}: {one.reason}") for one in problems]
    return None if problems else weights.locate(source)


def _path(found: Found, argument: str, value: Any) -> Path | None:
    if value is None:
        return None
    if isinstance(value, (str, Path)) and str(value).strip():
        return Path(value)
    found.add(argument, f"a directory, got {value!r:.100}")
    return None


def _unet(found: Found, finetuned: Any, base: Path | None) -> Path | None:
    """The directory that holds the fine-tuned `unet/`: the one given, or its parent if that is the `unet/` itself."""
    given = _path(found, "finetuned", finetuned)
    if given is None:
        return None
    for directory in (given, given.parent):
        if (directory / "unet" / "diffusion_pytorch_model.safetensors").is_file():
            if base is not None:
                _check_fit(found, base, directory / "unet")
            return directory
    found.add("finetuned", f"{given} holds no unet/diffusion_pytorch_model.safetensors")
    return None


def _check_fit(found: Found, base: Path, unet: Path) -> None:
    try:
        reason = weights.misfit(base, unet)
    except InputError as error:
        reason = error.problem.reason
    if reason:
        found.add("finetuned", f"{unet} holds {reason}")


def _scorer(found: Found, argument: str, value: Any, base: Path | None) -> Path | None:
    """The directory of a trained scorer; a Policy must read the text features that the model makes."""
    directory = _path(found, argument, value)
    if directory is None:
        return None
    try:
        described = read_config(directory, Selector if argument == "selector" else Policy)
        features = None if base is None else weights.text_features(base)
    except InputError as error:
        found.add(argument, f"{error.problem.source} {error.problem.reason}")
        return directory
    if argument == "policy" and features not in (None, described.get("text_dim")):
        reason = f"{directory} reads {described.get('text_dim')} text features and the model makes {features}"
        found.add(argument, f"{reason}: it was trained with another model")
    return directory


def _side(found: Found, argument: str, pixels: Any, default: int) -> int:
    if pixels is None:
        return default
    whole = isinstance(pixels, int) and not isinstance(pixels, bool)
    if whole and LEAST_SIDE <= pixels <= MOST_SIDE and pixels % SIDE_STEP == 0:
        return int(pixels)
    found.add(argument, f"a multiple of {SIDE_STEP} from {LEAST_SIDE} to {MOST_SIDE}, got {pixels!r:.100}")
    return default


def _device(found: Found, name: Any, config: Config | None) -> Device | None:
    """The device by its name, in the precision that is asked for."""
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,4}))?", name) if isinstance(name, str) else None
    if match is None:
        found.add("device", f"auto, cpu or cuda:N, got {name!r:.100}")
        return None
    section = config.device if config is not None else DeviceSection(use_cuda=name != "cpu")
    number = int(match[1] or 0) if name.startswith("cuda") else None
    try:
        return choose_device(section, number)
    except InputError as error:
        found.add(_ARGUMENT_OF.get(error.problem.key or "", "device"), error.problem.reason)
    return None


def check_prompts(
    prompts: Any, count: Any, modality: Any, settings: Config | None = None
) -> tuple[list[PromptRow | Item], list[Problem]]:
    """The prompts that are meant, and the warnings about them.

    Args:
        prompts: a text, an item, or several of them.
        count: images of each text.
        modality: of those that do not start with theirs; None if all do.
        settings: what the items' numbers of steps must fit.

    Raises:
        InputProblems: everything that is wrong with them, each by the name of its argument.
    """
    found = Found()
    name = None
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_IMAGES:
        found.add("count", f"a whole number from 1 to {MOST_IMAGES}, got {count!r:.100}")
    if modality is not None:
        name = canonical_modality(modality) if isinstance(modality, str) else None
        if name is None:
            found.add("modality", f"{modality!r:.100} {not_a_modality(str(modality))}")
    alone = isinstance(prompts, (str, Item))
    if isinstance(prompts, (bytes, bytearray, memoryview)):
        found.add("prompts", f"a text, an Item or several of them, got bytes, not text: {bytes(prompts[:80])!r}")
        prompts = []
    try:
        asked = [prompts] if alone else list(prompts)
    except TypeError:
        found.add("prompts", f"a text, an Item or several of them, got {prompts!r:.100}")
        asked = []
    if not asked and not found.problems:
        found.add("prompts", "there are none")
    warnings: list[Problem] = []
    rows: dict[int, PromptRow | Item] = dict(_texts(found, asked, name, alone, warnings))
    for place, prompt in enumerate(asked):
        argument = _place(place, alone)
        if isinstance(prompt, Item):
            rows[place] = prompt
            _check_item(found, argument, prompt, name, settings)
        elif not isinstance(prompt, str):
            found.add(argument, f"a text or an Item, got {prompt!r:.100}")
    if modality is not None and name is None:  # every prompt without a prefix would be told, too
        found.problems = [one for one in found.problems if "names no modality" not in one.reason]
    found.require_none()
    return [rows[place] for place in sorted(rows)], warnings


def _place(number: int, alone: bool) -> str:
    return "prompts" if alone else f"prompts[{number}]"


def _texts(
    found: Found, asked: list[Any], modality: str | None, alone: bool, warnings: list[Problem]
) -> Iterator[tuple[int, PromptRow]]:
    """The good ones of the texts, by their place in `asked`."""
    places = [place for place, prompt in enumerate(asked) if isinstance(prompt, str)]
    rows, problems = read_texts("prompts", [{"prompt": asked[place]} for place in places], modality)
    for problem in problems:
        place = _place(places[(problem.row or 1) - 1], alone)
        kept = warnings if problem.severity == "warning" else found.problems
        kept.append(replace(problem, source=place, row=None, key=None))
    return ((places[row.row - 1], row) for row in rows)


def _check_item(found: Found, argument: str, item: Item, modality: str | None, settings: Config | None) -> None:
    """Hold an item to what a row of a prompt list is held to."""
    record = {
        "id": item.prompt_id,
        "prompt": item.prompt,
        "seed": item.seed,
        "num_inference_steps": item.num_inference_steps,
        "guidance_scale": item.guidance_scale,
        "negative_prompt": item.negative_prompt,
        **item.extra,
    }
    _, problems = read_texts(argument, [record], modality)
    found.problems += [replace(one, row=None) for one in problems if one.severity == "error"]
    if not item.prompt_id:
        found.add(argument, "prompt_id is empty")
    if not isinstance(item.replicate, int) or item.replicate < 0:
        found.add(argument, f"replicate is a whole number from 0 on, got {item.replicate!r:.100}")
    if settings is not None and not problems and item.num_inference_steps is not None:
        reason = wrong_steps(settings.generation.scheduler, item.num_inference_steps)
        if reason:
            found.add(argument, reason)
