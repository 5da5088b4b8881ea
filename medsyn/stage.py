"""What a stage is: one function `run(config, task, directory, control)`, and the three things it is handed.

`Task` says which part of the work, `CampaignDirectory` where everything about the campaign is, `Control` how to
report progress and to learn that it is time to stop. This module knows no stage and imports no torch.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsyn import disk, time_use
from medsyn.progress import Progress

BLOCKS_PER_PART = 1000  # directory entries stay few enough for any file system
_OF_A_CAMPAIGN = ("campaign.json", "ledger.jsonl")
KEPT = "checkpoint-"  # begins the names of what finetune.keep_every keeps; no result of the campaign needs it
REPORTS = ("tensorboard", "wandb")  # folders of a task: its metrics for these programs, and no result either
GRACE_VARIABLE = "MEDSYN_GRACE_SECONDS"  # between a scheduler's signal to a task and its end
STAGES = ("finetune", "rlhf-stage1", "rlhf-stage2", "align", "generate", "evaluate")


def slug(name: str) -> str:
    """A modality's name as a file name: `X-Ray` -> `x-ray`."""
    return name.lower().replace(" ", "-")


@dataclass(frozen=True)
class Task:
    """One index of a stage's job array.

    `blocks` is the half-open range of blocks of the modality's prompt list that a generate task owns.
    """

    stage: str
    index: int
    name: str
    modality: str | None = None
    blocks: tuple[int, int] | None = None


def campaign_above(path: Path) -> Path | None:
    """The campaign directory that a path is, or is in; raises OSError if a name is too long, say."""
    folders = (path.absolute(), *path.absolute().parents)
    return next((one for one in folders if any((one / name).exists() for name in _OF_A_CAMPAIGN)), None)


class UndeclaredRead(Exception):
    """A stage asked for a result that it does not say it reads: nothing makes it wait for that result."""


@dataclass(frozen=True)
class Reader:
    """A task, and the earlier stages whose results it may read: of its own modality, where it has one."""

    task: Task
    stages: tuple[str, ...]

    def require(self, stage: str, name: str) -> None:
        """Raise UndeclaredRead if the task `name` of the stage is none of those it waits for."""
        its = self.task.modality
        foreign = its is not None and name not in ("all", slug(its))
        if stage != self.task.stage and (stage not in self.stages or foreign):
            reason = "which nothing makes it wait for (`READS` in medsyn/campaign/tasks.py)"
            raise UndeclaredRead(f"{self.task.stage} {self.task.name} asks for the result of {stage} {name}, {reason}")


@dataclass(frozen=True)
class CampaignDirectory:
    """Where everything about one campaign is. `tasks/` is bookkeeping, `work/` holds what the stages produce.

    `reader` is the task that it was handed to; None for whoever may look at everything.
    """

    root: Path
    reader: Reader | None = None

    @property
    def config(self) -> Path:
        """The resolved configuration that every task reads."""
        return self.root / "config.yaml"

    @property
    def campaign_file(self) -> Path:
        """The record that makes a directory a campaign: a bare marker first, completed last of all."""
        return self.root / "campaign.json"

    @property
    def ledger(self) -> Path:
        """What was submitted, started and ended; append-only."""
        return self.root / "ledger.jsonl"

    @property
    def report(self) -> Path:
        """The campaign's result, for people to read."""
        return self.root / "report.html"

    @property
    def ratings(self) -> Path:
        """The table of ratings of the campaign's own images (`medsyn.own_ratings`)."""
        return self.root / "ratings" / "ratings.csv"

    def done(self, stage: str, name: str) -> Path:
        """The task's done marker, written last."""
        return self.root / "tasks" / stage / "done" / f"{name}.json"

    def failed(self, stage: str, name: str) -> Path:
        """Why the task's newest attempt failed."""
        return self.root / "tasks" / stage / "failed" / f"{name}.json"

    def heartbeat(self, stage: str, name: str) -> Path:
        """The running task's progress."""
        return self.root / "tasks" / stage / "beat" / f"{name}.json"

    def attempts(self, stage: str, name: str) -> Path:
        """One line for every start and end of the task."""
        return self.root / "tasks" / stage / "attempts" / f"{name}.jsonl"

    def log(self, stage: str, name: str) -> Path:
        """What the task printed, all attempts in one file."""
        return self.root / "tasks" / stage / "log" / f"{name}.log"

    def slurm(self, name: str) -> Path:
        """The files of one submission to Slurm: batch script, list of tasks, output outside the tasks."""
        return self.root / "tasks" / "slurm" / name

    def work(self, stage: str, name: str) -> Path:
        """What the task produces; raises UndeclaredRead if the reader must not ask for that."""
        if self.reader is not None:
            self.reader.require(stage, name)
        return self.root / "work" / stage / name

    def finetuned_unet(self, task: str) -> Path:
        """Directory with the fine-tuned `unet/` of a modality's task or that of `all` (`FinetuneSection.task_for`)."""
        return self.work("finetune", slug(task)) / "model"

    def aligned_unet(self, modality: str) -> Path:
        """Directory with the `unet/` of a modality after alignment; that of fine-tuning, if no other was better."""
        return self.work("align", slug(modality)) / "model"

    def selector(self, modality: str | None = None) -> Path:
        """The trained Selector: of stage 2 for a modality, of stage 1 without one."""
        if modality is None:
            return self.work("rlhf-stage1", "all") / "selector"
        return self.work("rlhf-stage2", slug(modality)) / "selector"

    def policy(self, modality: str | None = None) -> Path:
        """The trained Policy: of stage 2 for a modality, of stage 1 without one."""
        if modality is None:
            return self.work("rlhf-stage1", "all") / "policy"
        return self.work("rlhf-stage2", slug(modality)) / "policy"

    def block(self, mode: str, modality: str, number: int) -> Path:
        """One block of generated images, complete or absent; independent of the shard that made it."""
        part = f"part-{number // BLOCKS_PER_PART:03d}"
        return self.work("generate", mode) / slug(modality) / part / f"block-{number:06d}"

    def shard(self, mode: str, modality: str, blocks: tuple[int, int]) -> Path:
        """The tables of one shard's blocks, made from the blocks' own records."""
        name = f"blocks-{blocks[0]:06d}-{blocks[1]:06d}"
        return self.work("generate", mode) / slug(modality) / "shards" / name


class Saved(Exception):
    """The task was asked to stop and its progress is on disk: exit code 75, run it again."""


class NoProgress(Exception):
    """The task cannot get further: exit code 70."""


class BadNode(Exception):
    """This machine is unfit for the task: exit code 78."""


class Control:
    """A running task's connection to the outside: heartbeats out, stop requests in.

    Signal handlers call `request_stop`, which only sets a flag. Loops call `leave_if_asked` where all progress
    is on disk.
    """

    def __init__(
        self,
        heartbeat: Path | None = None,
        heartbeat_seconds: float = 1.0,
        progress: Progress | None = None,
        grace_seconds: float | None = None,
    ) -> None:
        self._heartbeat = heartbeat
        self._progress = progress
        self._heartbeat_seconds = heartbeat_seconds
        self._last_heartbeat = 0.0
        self._grace_seconds = grace_seconds  # from a request to leave to the kill; None: nobody kills
        self.stop_requested = False
        self.together = False  # one of several processes, which agree on when to stop
        self.about: dict[str, Any] = {}  # which part of its work the task is at, for every heartbeat
        self.kept: dict[str, Any] = {}  # what a stage leaves to the next task of this process, as loaded models
        self.asked: float | None = None  # when the stop was requested, in seconds since the epoch
        self.step: int | None = None  # the last step reported

    def request_stop(self) -> None:
        """Ask the task to save and leave; safe in a signal handler."""
        self.asked = self.asked or time.time()
        self.stop_requested = self.stop_requested or not self.together

    def asked_here(self) -> bool:
        """Whether this process was asked to stop, whatever it has agreed on with others."""
        return self.asked is not None

    def seconds_left(self) -> float | None:
        """Until the task is killed, once a stop was requested; None if nothing is known of that."""
        if self.asked is None or self._grace_seconds is None:
            return None
        return max(0.0, self.asked + self._grace_seconds - time.time())

    def leave_if_asked(self) -> None:
        """Raise `Saved` if a stop was requested. Call only at a point where progress is on disk."""
        if self.stop_requested:
            raise Saved

    def heartbeat(
        self,
        step: int,
        total: int,
        unit: str = "step",
        worked: int | None = None,
        samples: int = 1,
        saved: bool = False,
        **numbers: Any,
    ) -> None:
        """Publish progress, at most once per `heartbeat_seconds`, and always at the end; print it now and then.

        Args:
            step: how many units are done.
            total: of how many.
            unit: what is counted.
            worked: how many this process has done, for the rate that is printed; None for no rate.
            samples: of each unit, for the rate.
            saved: a checkpoint is due, so it is printed too.
            numbers: further values.
        """
        self.step = step
        if self._progress is not None:
            self._progress.report(step, total, unit, numbers, worked, samples, now=saved)
        now = time.monotonic()
        if self._heartbeat is None or (step < total and now - self._last_heartbeat < self._heartbeat_seconds):
            return
        self._last_heartbeat = now
        where = {"time": time.time(), "host": os.uname().nodename}
        facts = {"step": step, "total": total, "unit": unit, **where, **self.about, **numbers}
        if (account := time_use.current()) is not None:
            facts["use"] = account.as_dict()
        with suppress(OSError):  # a heartbeat is a hint; writing what must be on disk raises errors of its own
            disk.write_unsynced(self._heartbeat, disk.to_json(facts))
