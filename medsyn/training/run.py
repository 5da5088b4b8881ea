"""The bookkeeping of a training run: metrics, heartbeats, checkpoints, and stopping on request."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from medsyn import disk, time_use
from medsyn.config import Config
from medsyn.errors import CONFIGURATION, InputError
from medsyn.models.scorers import PROVENANCE
from medsyn.stage import REPORTS, CampaignDirectory, Control, Saved, Task
from medsyn.training.background_writer import BackgroundWriter, Job, Tensors
from medsyn.training.checkpoint import newest_step, refuse_mismatch, save_checkpoint
from medsyn.training.schedule import RandomKey

if TYPE_CHECKING:
    from medsyn.training.event_files import EventFiles
    from medsyn.training.wandb_run import WandbRun

EVENT_FILES, WANDB = REPORTS
CONDITIONS = "conditions"  # of a published model's provenance: what may differ from step to step

logger = logging.getLogger(__name__)


def random_key(config: Config, task: Task) -> RandomKey:
    """What a run's randomness depends on."""
    return (config.campaign.seed, task.stage, task.name)


class TrainingRun:
    """What a training loop needs besides its model: a key for its randomness, and where to save and report.

    As a context manager it waits at the end for what is still being written, and raises what went wrong with it.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        directory: CampaignDirectory,
        control: Control,
        provenance: dict[str, Any],
        keep: int,
        checkpoints: str = "checkpoints",
        max_lost_minutes: float | None = None,
    ) -> None:
        """The run of a task, without what a killed attempt left half written.

        `provenance` is what the weights depend on: what was made from something else is refused. The newest `keep`
        checkpoints stay, in the folder `checkpoints` of the task's. Where no interval is given, one is chosen so
        that a kill costs at most `max_lost_minutes`.
        """
        self.key = random_key(config, task)
        self.directory = directory.work(task.stage, task.name)
        self.checkpoints, self.metrics = self.directory / checkpoints, self.directory / "metrics.jsonl"
        self.control, self.provenance, self._keep = control, provenance, keep
        self.conditions: list[dict[str, Any]] = []  # of the steps so far, from the first step of each on
        self._writer, self._saved_at = BackgroundWriter(), time.monotonic()
        self._max_lost = 60 * max_lost_minutes if max_lost_minutes else None
        self._report_to, self._names = config.training.report_to, (f"{task.stage} {task.name}", config.campaign.name)
        self._events: EventFiles | WandbRun | None = None
        for place in (self.directory, self.checkpoints):
            disk.sweep_temporaries(place)

    def has_published(self, model: Path, beside: Mapping[str, Any] | None = None) -> bool:
        """Whether the model exists; raises `InputError` if its provenance, and what is `beside`, differs."""
        if model.is_dir():
            path = model / PROVENANCE
            found = disk.read_json(path) if path.is_file() else {}
            found.pop(CONDITIONS, None)
            refuse_mismatch(model, found, self.provenance | dict(beside or {}))
        return model.is_dir()

    def resume_metrics(self, unit: str, last: int) -> list[dict[str, Any]]:
        """Drop the metrics after step `last`, which are made again; return the others.

        `unit` is the key of a line that is its step. What `training.report_to` asks for is made anew.

        Raises:
            InputError: the package that writes them is missing.
        """
        lines = disk.truncate_jsonl(self.metrics, unit, last)
        for name in (EVENT_FILES, WANDB):
            if self._report_to != name:  # what an earlier attempt wrote would be of other steps
                shutil.rmtree(self.directory / name, ignore_errors=True)
        if self._report_to == EVENT_FILES:
            self._events = _event_files(self.directory / EVENT_FILES, unit, lines)
        elif self._report_to == WANDB:
            self._events = _wandb_run(self.directory / WANDB, unit, lines, *self._names)
        return lines

    def step_done(
        self,
        done: int,
        total: int,
        save_every: int | None,
        state: Callable[[], dict[str, Tensor]],
        line: dict[str, Any] | None = None,
        samples: int = 1,
        beside: Sequence[Job] = (),
        **numbers: Any,
    ) -> None:
        """Report step `done` of `total`; have it saved if that is due; if a stop was requested, save and stop.

        Args:
            done: number of completed steps.
            total: of how many.
            save_every: steps between checkpoints; None: as many as `max_lost_minutes` allow.
            state: every tensor that a checkpoint needs; called only to save one.
            line: to append to the metrics, if this step has one.
            samples: of a step.
            beside: further things to write, before the checkpoint: no later attempt may have to make this step again.
            numbers: further values for the heartbeat and the log.

        Raises:
            Saved: a stop was requested; the state is on disk, or an earlier one, if there is no time.
            OSError: an earlier checkpoint could not be written.
        """
        if line is not None:
            disk.append_jsonl(self.metrics, line)
            if self._events is not None:
                self._events.add(line)
        due = self._is_due(done, save_every)
        self.control.heartbeat(done, total, "step", worked=done, samples=samples, saved=due, **numbers)
        leaving = self.control.stop_requested  # read once: a signal may come while the checkpoint is copied
        self._writer.raise_error()
        if leaving:
            self._leave(done, state, beside)
        jobs = [*beside, self._checkpoint(done, state())] if due else beside
        if jobs:
            with time_use.of(time_use.WRITING):
                self._writer.begin(jobs)

    def save(self, done: int, state: Callable[[], dict[str, Tensor]]) -> None:
        """Save the state after `done` steps, and wait until it is on disk."""
        self._writer.begin([self._checkpoint(done, state())])
        self._writer.wait()

    def wait(self) -> None:
        """Wait until everything that was due is on disk."""
        self._writer.wait()

    def note_conditions(self, step: int, **now: Any) -> None:
        """Put on record what step `step` (from 1) and those after it are computed with; tell where that changes."""
        before = self.conditions[-1] if self.conditions else None
        if before is not None:
            changed = [name for name, value in now.items() if before.get(name) != value]
            if not changed:
                return
            told = "; ".join(f"{name} was {before.get(name)} and is {now[name]}" for name in changed)
            logger.warning("from step %d on %s", step, told)
        self.conditions.append({"from_step": step, **now})

    def _is_due(self, done: int, save_every: int | None) -> bool:
        """Whether it is time to save.

        By the clock a checkpoint is begun early enough to be complete when `max_lost_minutes` are over, but not before
        the one before it is written, and never so often that more than half of the time one is being written.
        """
        if save_every:
            return done % save_every == 0
        if self._max_lost is None or self._writer.busy:
            return False
        writing = self._writer.last_seconds
        return time.monotonic() - self._saved_at >= max(self._max_lost - writing, writing)

    def _checkpoint(self, done: int, tensors: dict[str, Tensor]) -> Job:
        self._saved_at, conditions = time.monotonic(), list(self.conditions)
        kept = time_use.mark()

        def write(copies: Tensors) -> None:
            save_checkpoint(self.checkpoints, done, copies, self.provenance, self._keep, conditions)
            kept()

        return Job(tensors, write)

    def _leave(self, done: int, state: Callable[[], dict[str, Tensor]], beside: Sequence[Job]) -> None:
        """Save if there is time for it, and raise `Saved`."""
        with time_use.of(time_use.WRITING):
            self._save_in_time(done, state, beside)
        raise Saved

    def _save_in_time(self, done: int, state: Callable[[], dict[str, Tensor]], beside: Sequence[Job]) -> None:
        jobs, left = [*beside, self._checkpoint(done, state())], self.control.seconds_left()
        needed = self._writer.seconds(sum(job.size for job in jobs))
        if left is None or needed <= left:
            self._writer.begin(jobs)
            self._writer.wait()
        else:
            self._writer.wait(left)
            step = newest_step(self.checkpoints)
            kept = f"the checkpoint of step {step} stays" if step else "there is no checkpoint yet"
            logger.warning("to save step %d would take %.0f s, and %.0f s are left: %s", done, needed, left, kept)

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            with suppress(OSError):  # they are a copy: what the task ends with counts
                self._events.close()
        if kind is None:
            self._writer.wait()
        elif not issubclass(kind, Saved):  # what was due before an error is written, and the error is what is told
            with suppress(Exception):
                self._writer.wait()


class FollowedRun(TrainingRun):
    """The run of a task, as another process than the one that leads it sees it: it writes and reports nothing."""

    def __init__(self, config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
        self.key = random_key(config, task)
        self.directory = directory.work(task.stage, task.name)
        self.checkpoints, self.control = self.directory / "checkpoints", control
        self.conditions = []

    def resume_metrics(self, unit: str, last: int) -> list[dict[str, Any]]:
        """Nothing: the first process has the metrics."""
        return []

    def step_done(self, *_: Any, **__: Any) -> None:
        """Stop if all have agreed to."""
        self.control.leave_if_asked()


def _event_files(folder: Path, unit: str, lines: Sequence[Mapping[str, Any]]) -> EventFiles:
    try:
        from medsyn.training.event_files import EventFiles  # a second to import, for those who ask for it
    except ImportError as error:
        reason = f"TensorBoard cannot be imported ({error}); install medsyn-hpc[tensorboard], or use null"
        raise InputError(CONFIGURATION, reason, key="training.report_to") from None
    return EventFiles(folder, unit, lines)


def _wandb_run(folder: Path, unit: str, lines: Sequence[Mapping[str, Any]], name: str, group: str) -> WandbRun:
    try:
        from medsyn.training.wandb_run import WandbRun
    except ImportError as error:
        reason = f"Weights & Biases cannot be imported ({error}); install wandb, or use null"
        raise InputError(CONFIGURATION, reason, key="training.report_to") from None
    return WandbRun(folder, unit, lines, name, group)
