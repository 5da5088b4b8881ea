"""What was handed to Slurm, as the ledger has it: one record per job array or gate, with Slurm's id of it.

An intent is written before each `sbatch` and the id after it, so a launcher that is killed in between leaves a name
by which the job is found again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medsyn import disk
from medsyn.campaign import ledger
from medsyn.campaign.plan import Key

QUEUEING, QUEUED, RELEASED = "queueing", "queued", "released"
Kind = Literal["tasks", "gate"]


@dataclass(frozen=True)
class Submission:
    """A job array (or single job) that was queued: element i runs task `tasks[i]` of `stage`; a gate runs none."""

    name: str  # the job's name, unique in the campaign
    kind: Kind
    stage: str
    tasks: tuple[str, ...]  # of a gate: the tasks it looks at
    job: str  # Slurm's id

    def elements(self) -> Iterator[tuple[str, Key]]:
        """(id of the element, task) for every task that this submission runs."""
        if self.kind == "tasks":
            for index, task in enumerate(self.tasks):
                yield self.element(index), (self.stage, task)

    def element(self, index: int) -> str:
        """Slurm's id of one element; submitit makes no array of a single job."""
        return self.job if len(self.tasks) == 1 else f"{self.job}_{index}"


def intend(path: Path, name: str) -> None:
    """Write down that a job of this name is about to be queued."""
    ledger.record(path, QUEUEING, name=name)


def record(path: Path, submission: Submission) -> None:
    """Write down what was queued, and Slurm's id of it."""
    facts = {"name": submission.name, "kind": submission.kind, "stage": submission.stage}
    ledger.record(path, QUEUED, **facts, tasks=list(submission.tasks), job=submission.job)


def read(path: Path) -> list[Submission]:
    """Every submission on record, oldest first."""
    return [
        Submission(event["name"], event["kind"], event["stage"], tuple(event["tasks"]), event["job"])
        for event in disk.read_jsonl(path)
        if event.get("event") == QUEUED
    ]


def unrecorded(path: Path) -> list[str]:
    """Names of jobs that were about to be queued and may have been: the launcher was killed before it knew."""
    names: dict[str, None] = {}
    for event in disk.read_jsonl(path):
        if event.get("event") == QUEUEING:
            names[event["name"]] = None
        elif event.get("event") == QUEUED:
            names.pop(event["name"], None)
    return list(names)
