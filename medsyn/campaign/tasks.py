"""What runs, in which order, and what each result depends on: pure functions of the configuration.

finetune[modality] -> rlhf-stage2[modality] -> align[modality] -> generate[modality, shard] -> evaluate
rlhf-stage1 -------/

`align` is there where `align.enabled` says so.

With `finetune.together` there is one `finetune` task, `all`, and every generate task reads its model.

The arrows are not written down: they follow from what each stage says that it reads (`READS`).

A plan is data. Whoever runs it (the local scheduler, Slurm) obeys two rules only: a task starts when everything it
`needs` is done and everything it comes `after` is over. So one failed modality stops its own branch and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from medsyn.config import (
    FREE_OF_ALIGN,
    FREE_OF_FINETUNE,
    FREE_OF_SELECTOR,
    GLOBAL_BATCH,
    SAMPLING,
    TOGETHER,
    AlignSection,
    Config,
    FinetuneSection,
    GenerationSection,
    SelectorSection,
)
from medsyn.data.prompts.store import BlockRanges
from medsyn.disk import fingerprint
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.generation.block_store import plan_shards
from medsyn.modality_names import anatomy_of
from medsyn.stage import STAGES, Task, slug

SCHEMA = 5  # of campaign.json, of everything below tasks/, and of the records of images
Key = tuple[str, str]  # (stage, task name)
State = Literal["done", "failed", "blocked", "ready", "waiting"]


@dataclass(frozen=True)
class Result:
    """An earlier stage whose results a stage reads, in a campaign where `where` says so.

    A task reads those of its own modality and those for all; a task without a modality reads those of every modality.
    """

    stage: str
    where: Callable[[Config], bool] = lambda config: True


@dataclass(frozen=True)
class Reads:
    """What a stage's result depends on: configuration keys, input files, results of earlier stages.

    With `partial` a task uses those results that there are, and needs just one: it starts when no more can come.
    """

    keys: tuple[str, ...]
    inputs: tuple[str, ...]
    results: tuple[Result, ...] = ()
    partial: bool = False
    also: Callable[[Config], tuple[str, ...]] = lambda config: ()  # further keys, where a campaign's settings say so


_ALWAYS = ("campaign.seed", "device", "data.strict", "data.allow_synthetic")  # threads change bits too
_COLUMNS = ("data.modality_column", "data.patient_column")
_RLHF = (
    *_ALWAYS,
    *("data.modalities", "data.resolution", "data.text_chunks", "data.held_out_fraction"),
    *("raters", "policy_model"),
    *(f"selector.{key}" for key in SelectorSection.model_fields if key not in FREE_OF_SELECTOR),
    *("training.max_epochs", "training.batch_size", "training.checkpoints", "training.stage1"),
)

OPTIONAL = ("pairs",)  # inputs that a campaign can be without
_LEARNED_FROM = ("table", "ratings", "pairs", "weights")
_SAMPLING = tuple(f"generation.{key}" for key in SAMPLING)

RESHARDED_BY = ("generation.blocks_per_shard", "generation.shard_minutes", "cluster.max_shards")


def _samples_finetuned(config: Config) -> bool:
    return config.samples_with("finetuned")


def _samples_aligned(config: Config) -> bool:
    return config.samples_with("aligned")


def _judges_samples(config: Config) -> bool:
    """Whether a Selector learns from what its modality's generator samples, well and badly."""
    section = config.selector
    return config.training.stage1.train_selector and section.artifact_detection and section.sampled_prompts > 0


def _filters(config: Config) -> bool:
    return config.generation.filters


def _filters_by_modality(config: Config) -> bool:
    return _filters(config) and config.training.stage == 2


def _kept_for_the_judge(config: Config) -> tuple[str, ...]:
    """The share of the ratings that no scorer learns from is theirs to know, where there is a judge to keep it for."""
    return ("align.judge_share",) if config.align.enabled else ()


# Keys that name a file are not here: the file's content counts, not its path. Neither are those that only shard the
# blocks, which changes no result.
READS: dict[str, Reads] = {
    "finetune": Reads(
        (
            *(*_ALWAYS, *_COLUMNS, "data.resolution", "data.text_chunks", "data.held_out_fraction"),
            *(f"finetune.{key}" for key in FinetuneSection.model_fields if key not in FREE_OF_FINETUNE),
            GLOBAL_BATCH,
        ),
        ("table", "weights"),
        also=lambda config: ("data.modalities",) if config.finetune.together else (),
    ),
    "rlhf-stage1": Reads((*_RLHF, *_COLUMNS), _LEARNED_FROM, also=_kept_for_the_judge),
    "rlhf-stage2": Reads(
        (*_RLHF, *_COLUMNS, "training.stage2"),
        _LEARNED_FROM,
        (Result("rlhf-stage1"), Result("finetune", _judges_samples)),
        also=lambda config: (*(_SAMPLING if _judges_samples(config) else ()), *_kept_for_the_judge(config)),
    ),
    "align": Reads(
        (
            *(*_ALWAYS, *_COLUMNS, *_SAMPLING, "data.modalities", "data.resolution", "data.text_chunks"),
            *("data.held_out_fraction", "generation.quality_threshold", "selector.require_auroc"),
            *(f"align.{key}" for key in AlignSection.model_fields if key not in FREE_OF_ALIGN),
        ),
        ("table", "ratings", "pairs", "prompts", "weights"),
        (
            Result("finetune"),
            Result("rlhf-stage1", lambda config: config.training.stage == 1),
            Result("rlhf-stage2", lambda config: config.training.stage == 2),
        ),
    ),
    "generate": Reads(
        (
            *_ALWAYS,
            "data.resolution",
            "data.text_chunks",
            "training.stage",
            *(key for name in GenerationSection.model_fields if (key := f"generation.{name}") not in RESHARDED_BY),
        ),
        ("prompts", "weights"),
        (
            Result("finetune", _samples_finetuned),
            Result("rlhf-stage1", _filters),
            Result("rlhf-stage2", _filters_by_modality),
            Result("align", _samples_aligned),
        ),
    ),
    "evaluate": Reads(
        (
            *_ALWAYS,
            "data.modalities",
            *_COLUMNS,
            "data.resolution",
            "data.held_out_fraction",
            "evaluation",
        ),
        ("table", "ratings", "prompts", "weights"),
        (
            *(Result("finetune"), Result("rlhf-stage1"), Result("rlhf-stage2")),
            *(Result("align", lambda config: config.align.enabled), Result("generate")),
        ),
        partial=True,
    ),
}


def results_of(stage: str, config: Config) -> tuple[str, ...]:
    """The earlier stages whose results a stage reads in this campaign."""
    return tuple(result.stage for result in READS[stage].results if result.where(config))


@dataclass(frozen=True)
class PlannedTask:
    """A task and what it waits for.

    `needs` must be done. `after` must be over (done, failed or blocked), at least one of them done.
    """

    task: Task
    needs: tuple[Key, ...] = ()
    after: tuple[Key, ...] = ()

    @property
    def key(self) -> Key:
        """(stage, name): what the task is called everywhere."""
        return self.task.stage, self.task.name


@dataclass(frozen=True)
class Plan:
    """All tasks of a campaign, each after everything it waits for."""

    tasks: tuple[PlannedTask, ...]

    @cached_property
    def by_stage(self) -> dict[str, list[PlannedTask]]:
        """The tasks of each stage that has any, in order."""
        return {
            stage: tasks for stage in STAGES if (tasks := [planned for planned in self if planned.task.stage == stage])
        }

    @cached_property
    def shards(self) -> dict[str, list[tuple[int, int]]]:
        """The ranges of blocks of every modality's generate tasks."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for planned in self.by_stage.get("generate", []):
            if planned.task.modality is not None and planned.task.blocks is not None:
                ranges.setdefault(planned.task.modality, []).append(planned.task.blocks)
        return ranges

    @cached_property
    def by_key(self) -> dict[Key, PlannedTask]:
        """Every task by what it is called."""
        return {planned.key: planned for planned in self}

    @cached_property
    def by_urgency(self) -> list[PlannedTask]:
        """The tasks, first those with the longest chain of others behind them, for where there is room for few."""
        behind = dict.fromkeys(self.by_key, 0)
        for planned in reversed(self.tasks):
            for key in (*planned.needs, *planned.after):
                behind[key] = max(behind[key], behind[planned.key] + 1)
        return sorted(self.tasks, key=lambda planned: -behind[planned.key])

    def __iter__(self) -> Iterator[PlannedTask]:
        return iter(self.tasks)

    def select(self, words: Iterable[str]) -> set[Key]:
        """The tasks that words such as `finetune` and `generate:ct-00000` name; raises InputError for any other."""
        chosen: set[Key] = set()
        for word in words:
            stage, colon, which = word.partition(":")
            if colon:
                chosen.add(self.find(stage, which).key)
            elif stage in self.by_stage:
                chosen |= {planned.key for planned in self.by_stage[stage]}
            else:
                raise InputError(word, f"this campaign has no such stage; it has {', '.join(self.by_stage)}")
        return chosen

    def find(self, stage: str, which: str) -> PlannedTask:
        """The task of `stage` with this name or index; raises InputError, which lists the existing ones."""
        tasks = self.by_stage.get(stage, [])
        for planned in tasks:
            if which in (planned.task.name, str(planned.task.index)):
                return planned
        names = ", ".join(planned.task.name for planned in tasks[:8]) + (", ..." if len(tasks) > 8 else "")
        has = f"the stage has {len(tasks)}: {names}" if tasks else "this campaign has no such stage"
        if (stage, which) == ("finetune", TOGETHER):
            has += "; with finetune.together=true one task makes one model for all of them"
        raise InputError(stage, f"there is no task {which!r}; {has}")


def require_needs(
    plan: Plan, only: Collection[Key], there: Collection[Key], absent: str, with_after: bool = False
) -> None:
    """Raise InputProblems if a chosen task waits for one that is neither there nor chosen: it would never start.

    Args:
        plan: the campaign's.
        only: the chosen tasks.
        there: tasks that need not be chosen.
        absent: how a message says that a task is not among those: "not done".
        with_after: whether what a task comes after must be there, too.
    """
    problems = [
        Problem(
            "--only",
            f"{' '.join(planned.key)} needs {' '.join(need)}, which is {absent}: "
            f"add --only {':'.join(need)}, or omit --only",
        )
        for planned in plan
        if planned.key in only and planned.key not in there
        for need in (*planned.needs, *(planned.after if with_after else ()))
        if need not in there and need not in only
    ]
    if problems:
        raise InputProblems(problems)


def build(config: Config, images: Mapping[str, Sequence[int]], blocks_per_shard: Mapping[str, int]) -> Plan:
    """The plan of a campaign.

    Args:
        config: the campaign's configuration.
        images: how many images are asked for, by modality and run of prompts with equal settings; a modality without
            any gets no generate task.
        blocks_per_shard: by modality, see `medsyn.campaign.plan.shards`.
    """
    planned: list[PlannedTask] = []
    made: dict[str, list[Task]] = {}
    for stage in STAGES:
        made[stage] = _tasks(stage, config, images, blocks_per_shard)
        read = [task for result in results_of(stage, config) for task in made[result]]
        waits_for = {
            modality: tuple((task.stage, task.name) for task in read if is_of(modality, task.modality))
            for modality in dict.fromkeys(task.modality for task in made[stage])
        }
        which = "after" if READS[stage].partial else "needs"
        planned += [PlannedTask(task, **{which: waits_for[task.modality]}) for task in made[stage]]
    return Plan(tuple(planned))


def is_of(reader: str | None, modality: str | None) -> bool:
    """Whether a task of the modality `reader` reads the results of one of `modality`; None: of all."""
    return reader is None or modality is None or modality == reader


def _tasks(
    stage: str, config: Config, images: Mapping[str, Sequence[int]], blocks_per_shard: Mapping[str, int]
) -> list[Task]:
    """The tasks of a stage; none where the campaign does without it."""
    if stage in ("rlhf-stage1", "evaluate"):
        return [Task(stage, 0, TOGETHER)]
    if stage == "rlhf-stage2" and config.training.stage == 1:
        return []
    if stage == "align" and not config.align.enabled:
        return []
    if stage == "finetune" and config.finetune.together:
        return [Task(stage, 0, TOGETHER)]
    if stage != "generate":
        return [Task(stage, index, slug(modality), modality) for index, modality in enumerate(config.data.modalities)]
    shards = [
        (modality, number, blocks)
        for modality in config.data.modalities
        if (count := count_blocks(config, images.get(modality, ())))
        for number, blocks in enumerate(plan_shards(count, blocks_per_shard[modality]))
    ]
    return [
        Task(stage, index, f"{slug(modality)}-{number:05d}", modality, blocks)
        for index, (modality, number, blocks) in enumerate(shards)
    ]


def count_blocks(config: Config, runs: Sequence[int]) -> int:
    """How many blocks there are of a modality with so many images in its runs of prompts."""
    return BlockRanges(tuple(runs), config.generation.block_size).count


def stage_fingerprints(config: Config, inputs: Mapping[str, str]) -> dict[str, str]:
    """One fingerprint per stage of everything its results depend on, results of earlier stages included.

    Args:
        config: the resolved configuration.
        inputs: fingerprints of the contents of `table`, `ratings`, `prompts` and `weights`, and of `pairs` if there
            are any.
    """
    fingerprints: dict[str, str] = {}
    # which rows a model learns from depends on the parts of the body that are listed beside it
    anatomies = [name for name in config.data.modalities if anatomy_of(name)]
    for stage in STAGES:
        if stage == "align" and not config.align.enabled:  # campaigns of before there was the stage can be opened
            continue
        reads = READS[stage]
        fingerprints[stage] = fingerprint(
            {
                "schema": SCHEMA,
                "stage": stage,
                "config": config.section_fingerprint(*keys_of(stage, config)),
                "inputs": {name: inputs[name] for name in reads.inputs if name not in OPTIONAL or name in inputs},
                "results": {name: fingerprints[name] for name in results_of(stage, config)},
                **({"anatomies": anatomies} if anatomies else {}),
            }
        )
    return fingerprints


def keys_of(stage: str, config: Config) -> tuple[str, ...]:
    """The configuration keys that a stage's own result depends on, or the sections that they are in."""
    return (*READS[stage].keys, *READS[stage].also(config))


def reads_key(stage: str, key: str, config: Config) -> bool:
    """Whether a stage's own result depends on the configuration key."""
    return any(key == read or key.startswith(read + ".") for read in keys_of(stage, config))


@dataclass(frozen=True)
class Settled:
    """Where every task stands, and for the blocked ones the failed tasks at the root of it."""

    states: Mapping[Key, State]
    blocked_by: Mapping[Key, tuple[Key, ...]]

    def count(self, stage: str, state: State) -> int:
        """How many tasks of the stage are in the state."""
        return sum(1 for key, its in self.states.items() if key[0] == stage and its == state)


def settle(plan: Plan, done: Collection[Key], failed: Collection[Key]) -> Settled:
    """Derive every task's state from what is done and what has failed."""
    states: dict[Key, State] = {}
    blocked_by: dict[Key, tuple[Key, ...]] = {}

    def roots(keys: Collection[Key]) -> tuple[Key, ...]:
        return tuple(dict.fromkeys(root for key in keys for root in blocked_by.get(key, (key,))))

    for planned in plan:
        key = planned.key
        stopped = [need for need in planned.needs if states[need] in ("failed", "blocked")]
        is_over = all(states[other] not in ("ready", "waiting") for other in planned.after)
        nothing_made = bool(planned.after) and not any(states[other] == "done" for other in planned.after)
        if key in done:
            states[key] = "done"
        elif key in failed:
            states[key] = "failed"
        elif stopped or (is_over and nothing_made):
            states[key] = "blocked"
            blocked_by[key] = roots(stopped or planned.after)
        elif is_over and all(states[need] == "done" for need in planned.needs):
            states[key] = "ready"
        else:
            states[key] = "waiting"
    return Settled(states, blocked_by)
