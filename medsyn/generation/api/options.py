"""The options of one call and their three names: argument of `medsyn.Generator`, flag, and configuration key.

The arguments become a `Config`, which validates their values; neither torch nor a disk is needed. The source of a
problem (`Problem.source`) is the argument; the command line turns it into its flag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from medsyn.arms import Mode, filters
from medsyn.config import EMBEDDED, Config, validate
from medsyn.data.prompts.rows import wrong_negative
from medsyn.errors import InputProblems, Problem
from medsyn.modality_names import MODALITIES, most_specific, not_a_modality, read_name
from medsyn.schedulers import SchedulerName
from medsyn.text import did_you_mean

BATCH_SIZE, MOST_TOGETHER = 4, 1024  # candidates in a batch, by default and at most
BATCHES_PER_BLOCK = 4  # packed together; a campaign may have far more, but here somebody waits for the first image


class Sampling(TypedDict, total=False):
    """How images are sampled and chosen: keys of the configuration's section `generation`."""

    num_inference_steps: int
    scheduler: SchedulerName
    guidance_scale: float
    guidance_interval: Sequence[float]
    fast: bool
    deep_cache_every: int | None
    text_attention_until: float | None
    negative_prompt: str
    batch_size: int
    batches_per_block: int
    quality_threshold: float | Literal["auto"]
    num_candidates: int
    min_policy_score: float | None
    max_attempts: int
    on_exhausted: Literal["fail", "skip", "keep-best"]


@dataclass(frozen=True)
class Option:
    """The other names of an argument."""

    flag: str | None  # of `medsyn generate --prompt`
    key: str | None = None  # of the configuration
    is_of_filter: bool = False


OPTIONS = {
    "prompts": Option("--prompt"),
    "count": Option("--img_num"),
    "modality": Option("--modality"),
    "model": Option("--pretrained_model", "model_paths.stable_diffusion"),
    "finetuned": Option("--model_used"),
    "selector": Option("--selector_checkpoint"),
    "policy": Option("--policy_checkpoint"),
    "device": Option("--device"),
    "precision": Option("--precision", "device.precision"),
    "height": Option("--height"),
    "width": Option("--width"),
    "seed": Option("--seed", "campaign.seed"),
    "num_inference_steps": Option("--num_inference_steps", "generation.num_inference_steps"),
    "scheduler": Option("--scheduler", "generation.scheduler"),
    "guidance_scale": Option("--guidance_scale", "generation.guidance_scale"),
    "guidance_interval": Option(None, "generation.guidance_interval"),
    "fast": Option("--fast", "generation.fast"),
    "deep_cache_every": Option(None, "generation.deep_cache_every"),
    "text_attention_until": Option(None, "generation.text_attention_until"),
    "negative_prompt": Option("--negative_prompt", "generation.negative_prompt"),
    "batch_size": Option("--batch_size", "generation.batch_size"),
    "batches_per_block": Option(None, "generation.batches_per_block"),
    "quality_threshold": Option("--quality_threshold", "generation.quality_threshold", is_of_filter=True),
    "num_candidates": Option("--num_candidates", "generation.num_candidates", is_of_filter=True),
    "min_policy_score": Option("--min_policy_score", "generation.min_policy_score", is_of_filter=True),
    "max_attempts": Option("--max_attempts", "generation.max_attempts", is_of_filter=True),
    "on_exhausted": Option(None, "generation.on_exhausted", is_of_filter=True),
}


def modality_of(found: list[Problem], modality: Any, modalities: Collection[str] = MODALITIES) -> str | None:
    """The canonical name of the modality that an argument names; None, with a problem added, if it names none.

    Args:
        found: problems are added to it.
        modality: the argument.
        modalities: those that a name may stand for, besides the five: `Brain MRI`.
    """
    named = read_name(modality) if isinstance(modality, str) else None
    if named is None:
        found.append(Problem("modality", f"{modality!r:.100} {not_a_modality(str(modality))}"))
        return None
    name = most_specific(named.modality, named.anatomies, modalities)
    if name is None:
        found.append(Problem("modality", f"{modality!r:.100} is none of the campaign's: {', '.join(modalities)}"))
    return name


def mode_of(given: Mapping[str, Any]) -> Mode:
    """`filtered` if the arguments include a scorer, else `baseline`."""
    return "baseline" if given.get("selector") is None and given.get("policy") is None else "filtered"


def configuration(given: Mapping[str, Any], defaults: Config | None = None) -> tuple[Config | None, list[Problem]]:
    """The configuration for arguments of `medsyn.Generator` (None if invalid), and everything wrong with them.

    Args:
        given: the arguments.
        defaults: the configuration of the campaign that made the models; medsyn's own defaults if there is none.
    """
    problems = [*_wrong_names(given), *_wrong_values(given)]
    places = {option.key: name for name, option in OPTIONS.items() if option.key and name in given}
    if any(problem.source == "batch_size" for problem in problems):
        del places["generation.batch_size"]  # a campaign's may be `auto`; its message would not fit here
    tree = _defaults(defaults, given)
    for key, name in places.items():
        section, _, leaf = key.partition(".")
        tree.setdefault(section, {})[leaf] = _plain(given[name])
    try:
        return validate(tree, "generator", places), problems
    except InputProblems as error:
        return None, [*problems, *(replace(problem, key=None) for problem in error.problems)]


def _defaults(campaign: Config | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration that single prompts share with a campaign."""
    config = campaign or Config()
    section = config.generation
    size = section.batch_size if campaign and section.batch_size != "auto" else BATCH_SIZE
    most = given.get("max_attempts")
    fewer = section.num_candidates if not isinstance(most, int) else max(1, min(section.num_candidates, most))
    candidates = section.num_candidates if "num_candidates" in given else fewer
    return {
        "campaign": {"seed": config.campaign.seed},
        "data": {
            "resolution": config.data.resolution,
            "text_chunks": config.data.text_chunks,
            "modalities": config.data.modalities or None,
        },
        "model_paths": config.model_paths.model_dump(),
        "device": {"precision": config.device.precision, "use_cuda": given.get("device") != "cpu"},
        "generation": {
            **section.model_dump(),
            "modes": [mode_of(given)],
            "batch_size": size,
            "batches_per_block": BATCHES_PER_BLOCK,
            "num_candidates": candidates,
        },
    }


def _wrong_names(given: Mapping[str, Any]) -> Iterator[Problem]:
    """Unknown arguments, and those of a filter that is absent or incomplete."""
    has_filter = filters(mode_of(given))
    for name in given:
        if name not in OPTIONS:
            yield Problem(name, f"no such argument{did_you_mean(name, OPTIONS)}")
        elif OPTIONS[name].is_of_filter and not has_filter:
            yield Problem(name, "belongs to the filter, which needs a Selector and a Policy")
    for scorer in ("selector", "policy"):
        if has_filter and given.get(scorer) is None:
            yield Problem(scorer, "is missing: the filter needs both a Selector and a Policy")


def _wrong_values(given: Mapping[str, Any]) -> Iterator[Problem]:
    """What the configuration would allow, or cannot check."""
    size = given.get("batch_size", BATCH_SIZE)
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MOST_TOGETHER:
        yield Problem("batch_size", f"must be a whole number from 1 to {MOST_TOGETHER}, got {size!r:.100}")
    if given.get("batches_per_block") == "auto":
        yield Problem("batches_per_block", "must be a whole number of at least 1, got 'auto'")
    negative = given.get("negative_prompt")
    if isinstance(negative, str):
        yield from (Problem("negative_prompt", reason) for reason in wrong_negative(negative))
    model = given.get("model", EMBEDDED)
    if isinstance(model, str) and not model.strip():
        yield Problem("model", f"must be `{EMBEDDED}`, a diffusers directory or a hub id, got {model!r}")


def _plain(value: Any) -> Any:
    """A value as a configuration holds it: no tuples, no paths."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
