"""The amount of work: images, ratings and prompts of a campaign, and the share of one task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsyn.config import Config, GenerationSection
from medsyn.data.prompts.store import Run
from medsyn.schedulers import SchedulerName
from medsyn.stage import Task

# Of images, rated images, ratings, prompts, images `asked` for, and the UNet calls that make one candidate of each of
# these, `guided` and `plain`; by modality.
Counts = Mapping[str, Mapping[str, int]]

_TWO_CALLS_A_STEP = frozenset({"heun", "dpm2", "dpm2_a"})  # but for the last one


@dataclass(frozen=True)
class Volume:
    """The amount of work of one task; counts of things, not bytes."""

    images: int = 0  # to train on
    held_out: int = 0  # images besides
    rated: int = 0  # rated images
    ratings: int = 0
    asked: int = 0  # images that one mode makes; short blocks count as full ones
    places: int = 0  # with the padding of every batch
    guided: float = 0.0  # UNet calls with guidance for one candidate: the mean of the modality's prompts
    plain: float = 0.0  # and without


def volume(config: Config, task: Task, counts: Counts) -> Volume:
    """The volume of one task; the whole campaign's for a task without a modality."""

    def count(what: str) -> int:
        its = counts.get(what, {})
        return sum(its.values()) if task.modality is None else its.get(task.modality, 0)

    wanted = count("asked")
    size, batch = config.generation.block_size, config.generation.images_per_batch
    start, end = task.blocks or (0, -(-wanted // size))
    asked = min((end - start) * size, wanted)
    known = "guided" in counts and wanted > 0
    calls: tuple[float, float] = (
        (count("guided") / wanted, count("plain") / wanted) if known else unet_calls(config.generation)
    )
    images = round(count("images") * (1 - config.data.held_out_fraction))
    return Volume(
        images=images,
        held_out=count("images") - images,
        rated=count("rated images"),
        ratings=max(count("ratings"), count("rated images")),
        asked=asked,
        places=-(-asked // batch) * batch,
        guided=calls[0],
        plain=calls[1],
    )


def scheduler_calls(scheduler: SchedulerName, steps: int) -> int:
    """How often the sampler calls the UNet to make `steps` steps."""
    if scheduler in _TWO_CALLS_A_STEP:
        return 2 * steps - 1
    return steps + 1 if scheduler == "pndm" and steps > 1 else steps


def unet_calls(section: GenerationSection, steps: int | None = None, guided: bool | None = None) -> tuple[int, int]:
    """UNet calls for one candidate: (with guidance, without). Of a call that leaves out most of the UNet none counts.

    Args:
        section: the settings that the prompt may override.
        steps: the prompt's own number of steps.
        guided: whether the prompt's own guidance scale differs from 1.
    """
    calls = scheduler_calls(section.scheduler, section.num_inference_steps if steps is None else steps)
    with_guidance = section.guidance_scale != 1 if guided is None else guided
    deep = [call.guided for call in section.shortcuts.calls(calls, with_guidance) if call.deep]
    return sum(deep), len(deep) - sum(deep)


def asked(modalities: Mapping[str, Sequence[Run]], section: GenerationSection) -> dict[str, Counter[str]]:
    """The counts `asked`, `guided` and `plain` of prompt lists, with each prompt's own settings."""
    found: dict[str, Counter[str]] = {"asked": Counter(), "guided": Counter(), "plain": Counter()}
    for modality, runs in modalities.items():
        for run in runs:
            items = run.items(section.img_num)
            with_guidance, without = unet_calls(section, run.num_inference_steps, run.guided)
            for what, number in (("asked", items), ("guided", items * with_guidance), ("plain", items * without)):
                found[what][modality] += number
    return found
