"""Whether a campaign's estimated needs can be met: memory on the cards, space on the file system.

`generation.batch_size: auto`: the largest batch that a card's memory is estimated to hold, chosen at plan time.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from medsyn import disk
from medsyn.campaign.estimate import architecture, memory
from medsyn.campaign.estimate.cost import Estimate
from medsyn.campaign.plan import machine
from medsyn.campaign.tasks import Key
from medsyn.config import Config
from medsyn.errors import CONFIGURATION, InputError, Problem
from medsyn.stage import STAGES, CampaignDirectory
from medsyn.text import GIB, gib

# What makes a stage need less, the mildest first; each keeps what the ones before it have changed.
_REMEDIES: dict[str, tuple[tuple[str, Any], ...]] = {
    "finetune": (
        ("finetune.use_8bit_adam", True),
        ("finetune.gradient_checkpointing", True),
        ("finetune.train_batch_size", 1),
    ),
    "align": (
        ("align.lora.rank", 16),
        ("finetune.gradient_checkpointing", True),
        ("align.train_batch_size", 2),
        ("generation.batch_size", 1),
    ),
    "generate": (("generation.batch_size", 1),),
    "rlhf-stage1": (("training.batch_size", 1),),
    "rlhf-stage2": (("generation.batch_size", 1), ("training.batch_size", 1), ("selector.artifact_detection", False)),
}

# another kind of fine-tuning, where none of those is enough
_ADAPTERS: tuple[tuple[str, Any], ...] = (("finetune.lora.rank", 16), *_REMEDIES["finetune"][1:])

SIZES = (1, 2, 4, 8, 16, 32, 64)
ON_CPU = 8
RESERVE = 0.1  # of the card's memory: how far off the estimate may be


def check(config: Config, estimate: Estimate, done: Collection[Key], converted: int = 0) -> list[Problem]:
    """Stages that do not fit a card of `cluster.gpu_memory_gib`, and a file system too full for what is not done.

    `converted` are the bytes of a model that is still to be converted.
    """
    return [*_check_memory(config, estimate), *_check_disk(config, estimate, done, converted)]


def marked_done(directory: CampaignDirectory) -> set[Key]:
    """The tasks with a done marker; one listing per stage, and no marker is read."""
    markers = {stage: directory.done(stage, "any").parent for stage in STAGES}
    return {(stage, path.stem) for stage, folder in markers.items() for path in folder.glob("*.json")}


def disk_needed(estimate: Estimate, done: Collection[Key], at_once: int | None = None) -> int:
    """Bytes that the tasks not in `done` leave, and those that `at_once` of them (None: all) need besides."""
    open_tasks = [cost for key, cost in estimate.tasks.items() if key not in done]
    scratch = sorted((cost.scratch for cost in open_tasks), reverse=True)
    return sum(cost.kept for cost in open_tasks) + sum(scratch[:at_once])


def disk_free(config: Config) -> int | None:
    """Bytes free where the campaign's directory is or will be; None if unknown."""
    return disk.free_bytes(config.campaign.path)


def _check_disk(config: Config, estimate: Estimate, done: Collection[Key], converted: int) -> Iterator[Problem]:
    """An error if the tasks that run at once on one machine find no space, a warning if all at once would not."""
    free = disk_free(config)
    surely = converted + disk_needed(estimate, done, config.cluster.max_parallel)
    at_once = converted + disk_needed(estimate, done)
    if free is None or at_once <= free:
        return
    too_full = surely > free
    needed = surely if too_full else at_once
    when = "" if too_full else " if all its tasks run at once"
    section = config.finetune
    keep_fewer = ", or raise finetune.keep_every" if section.keep_every else ""
    if section.can_be_lengthened and section.keep_last_checkpoint:
        keep_fewer += ", or set finetune.keep_last_checkpoint=false"
    reason = (
        f"the campaign is estimated to need {gib(needed)} GiB more{when}, and {config.campaign.path} has "
        f"{gib(free)} GiB free: free some space, choose another directory, or lower finetune.checkpoints_total_limit"
        f"{keep_fewer}"
    )
    yield Problem(CONFIGURATION, reason, key="campaign.dir", severity="error" if too_full else "warning")


def _check_memory(config: Config, estimate: Estimate) -> Iterator[Problem]:
    card = config.cluster.gpu_memory_gib
    if card is None or not estimate.on_gpu:
        return
    for stage in STAGES:
        needed = max((cost.memory for cost in estimate.of(stage)), default=0)
        if needed > card * GIB:
            reason = (
                f"{stage} is estimated to need {gib(needed)} GiB of GPU memory, but a card has {card:g} GiB "
                f"(cluster.gpu_memory_gib): {_advice(config, stage, card)}"
            )
            yield Problem(CONFIGURATION, reason, key=_first_key(config, stage))


def _first_key(config: Config, stage: str) -> str:
    """The key that a problem of the stage names: the first one that would help and is not set so already."""
    remedies = [key for key, value in _REMEDIES[stage] if _value(config, key) != value]
    return remedies[0] if remedies else "data.resolution"


def _value(config: Config, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def _advice(config: Config, stage: str, card: float) -> str:
    """The fewest changes that make the stage fit."""
    ladders = [_REMEDIES[stage]]
    if stage == "finetune" and config.finetune.lora.rank is None:
        ladders.append(_ADAPTERS)
    tried = []
    for ladder in ladders:
        changes, needed = _climb(config, stage, card, ladder)
        if needed <= card * GIB:
            return f"{', '.join(changes)} would need {gib(needed)} GiB"
        tried += [", ".join(changes)] if changes else []
    told = f"{'; or '.join(tried)} is not enough; " if tried else ""
    return f"{told}lower data.resolution, or use a card with more memory"


def _climb(config: Config, stage: str, card: float, ladder: Sequence[tuple[str, Any]]) -> tuple[list[str], int]:
    """The changes of a ladder up to the one that makes the stage fit, or all of them, and the bytes needed then."""
    network = architecture.read(config.model_paths.described_by, config.data.resolution, config.data.chunks)
    tree, changes = config.model_dump(), []
    needed = memory.memory(config, stage, network)
    for key, value in ladder:
        if needed <= card * GIB or _value(config, key) == value:
            continue
        *sections, leaf = key.split(".")
        functools.reduce(operator.getitem, sections, tree)[leaf] = value
        changes.append(f"{key}={str(value).lower()}")
        needed = memory.memory(Config.model_validate(tree), stage, network)
    return changes, needed


def resolve_batch_size(config: Config) -> Config:
    """The configuration with a number in place of `auto`.

    A batch of one is chosen where even that is too large: `capacity.check` says what would help.

    Raises:
        InputError: the tasks will run on a GPU and `cluster.gpu_memory_gib` does not say how much memory it has.
    """
    if config.generation.batch_size != "auto":
        return config
    if not machine.expects_gpu(config):
        return with_size(config, ON_CPU)
    if config.cluster.gpu_memory_gib is None:
        reason = (
            "generation.batch_size=auto needs to know how much memory a card has: set it, or give a batch size, or set "
            "device.use_cuda=false where tasks compute without a GPU"
        )
        raise InputError(CONFIGURATION, reason, key="cluster.gpu_memory_gib")
    budget = (1 - RESERVE) * config.cluster.gpu_memory_gib * GIB
    return with_size(config, max((size for size in SIZES if needed(config, size) <= budget), default=SIZES[0]))


def with_size(config: Config, size: int) -> Config:
    """The configuration with another batch size."""
    return config.model_copy(update={"generation": config.generation.model_copy(update={"batch_size": size})})


def needed(config: Config, size: int) -> int:
    """Bytes of a card's memory that generation in batches of `size` is estimated to need."""
    networks = architecture.read(config.model_paths.described_by, config.data.resolution, config.data.chunks)
    return memory.memory(with_size(config, size), "generate", networks)
