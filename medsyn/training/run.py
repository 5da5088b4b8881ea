"""The bookkeeping of a training run: metrics, heartbeats, checkpoints, and stopping on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from medsyn import disk
from medsyn.config import Config
from medsyn.models.scorers import PROVENANCE
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.checkpoint import refuse_mismatch, save_checkpoint
from medsyn.training.schedule import RandomKey


def random_key(config: Config, task: Task) -> RandomKey:
    """What a run's randomness depends on."""
    return (config.campaign.seed, task.stage, task.name)


class TrainingRun:
    """What a training loop needs besides its model: a key for its randomness, and where to save and report."""

    def __init__(
        self,
        config: Config,
        task: Task,
        directory: CampaignDirectory,
        control: Control,
        provenance: dict[str, Any],
        keep: int,
        checkpoints: str = "checkpoints",
    ) -> None:
        """The run of a task, without what a killed attempt left half written.

        `provenance` is what the weights depend on: what was made from something else is refused. The newest `keep`
        checkpoints stay, in the folder `checkpoints` of the task's.
        """
        self.key = random_key(config, task)
        self.directory = directory.work(task.stage, task.name)
        self.checkpoints, self.metrics = self.directory / checkpoints, self.directory / "metrics.jsonl"
        self.control, self.provenance, self._keep = control, provenance, keep
        for place in (self.directory, self.checkpoints):
            disk.sweep_temporaries(place)

    def has_published(self, model: Path) -> bool:
        """Whether the model exists; raises `InputError` if its provenance differs."""
        if model.is_dir():
            path = model / PROVENANCE
            refuse_mismatch(model, disk.read_json(path) if path.is_file() else {}, self.provenance)
        return model.is_dir()

    def step_done(
        self,
        done: int,
        total: int,
        save_every: int,
        state: Callable[[], dict[str, Tensor]],
        line: dict[str, Any] | None = None,
        samples: int = 1,
        **numbers: Any,
    ) -> None:
        """Report step `done` of `total`; save if it is due or a stop was requested, and then stop.

        Args:
            done: number of completed steps.
            total: after the last step the state is always saved.
            save_every: steps between checkpoints.
            state: every tensor that a checkpoint needs; called only to save one.
            line: to append to the metrics, if this step has one.
            samples: of a step.
            numbers: further values for the heartbeat and the log.

        Raises:
            Saved: a stop was requested; the state is on disk.
        """
        if line is not None:
            disk.append_jsonl(self.metrics, line)
        due = done % save_every == 0 or done == total
        self.control.heartbeat(done, total, "step", worked=done, samples=samples, saved=due, **numbers)
        leaving = self.control.stop_requested  # read once: a signal may come while the checkpoint is written
        if leaving or due:
            save_checkpoint(self.checkpoints, done, state(), self.provenance, self._keep)
        if leaving:
            self.control.leave_if_asked()


class FollowedRun(TrainingRun):
    """The run of a task, as another process than the one that leads it sees it: it writes and reports nothing."""

    def __init__(self, config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
        self.key = random_key(config, task)
        self.directory = directory.work(task.stage, task.name)
        self.checkpoints, self.control = self.directory / "checkpoints", control

    def step_done(self, *_: Any, **__: Any) -> None:
        """Stop if all have agreed to."""
        self.control.leave_if_asked()
