"""What was submitted to Slurm, from the ledger: one record per job array or gate, with its Slurm id.

The intent is written before each `sbatch` and the id after it, so a launcher that is killed in between leaves a name
by which the job can be found. So is the campaign's directory written: a copy has the ledger, too, and none of the jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medsyn import disk
from medsyn.campaign.state import ledger
from medsyn.campaign.tasks import Key

QUEUEING, QUEUED = "queueing", "queued"
RELEASING, RELEASED, WITHDRAWN = "releasing", "released", "withdrawn"
Kind = Literal["tasks", "gate"]


@dataclass(frozen=True)
class Submission:
    """A job array (or single job) that was queued: element i runs task `tasks[i]` of `stage`; a gate runs none."""

    name: str  # the job's name, unique in the campaign; ends with the launch it belongs to
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
        """Slurm's id of one element; submitit does not make an array of a single job."""
        return self.job if len(self.tasks) == 1 else f"{self.job}_{index}"


@dataclass
class Launch:
    """Everything that one `submit` or `resume` queued, from the ledger, where its key is `round`."""

    intended: list[str] = field(default_factory=list)  # names, written before sbatch
    submissions: list[Submission] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # jobs to be released, known once all are queued
    state: str = QUEUEING
    directory: str | None = None  # where the campaign was when it queued this


def name_of(node: str, campaign: str, number: str) -> str:
    """The job name of a node: `squeue` shows it, and a lost job is found by it."""
    return f"medsyn-{campaign}-{node}-{number}"


def launches(path: Path, with_copied: bool = False) -> dict[str, Launch]:
    """Every launch on record, oldest first.

    Args:
        path: the campaign's ledger.
        with_copied: include the launches of another campaign of which this one is a copy: its jobs are not this one's.
    """
    found: dict[str, Launch] = {}
    for event in disk.read_jsonl(path):
        kind = event.get("event")
        if kind not in (QUEUEING, QUEUED, RELEASING, RELEASED, WITHDRAWN):
            continue
        its = found.setdefault(event["round"], Launch())
        its.directory = event.get("directory", its.directory)
        if kind == QUEUEING:
            its.intended.append(event["name"])
        elif kind == QUEUED:
            tasks = tuple(event["tasks"])
            its.submissions.append(Submission(event["name"], event["kind"], event["stage"], tasks, event["job"]))
        else:
            its.state = kind
            its.held = event.get("held", its.held)
    copied = set() if with_copied else _copied(path, found)
    return {number: its for number, its in found.items() if number not in copied}


def originals(path: Path) -> list[str]:
    """The directories of other campaigns whose launches this ledger has because it was copied."""
    found = launches(path, with_copied=True)
    return sorted({str(found[number].directory) for number in _copied(path, found)})


def _copied(path: Path, found: Mapping[str, Launch]) -> set[str]:
    """The launches that the campaign they were made in still has; one that was moved has left nothing behind."""
    places = {its.directory for its in found.values() if its.directory and its.directory != str(path.parent)}
    kept = {place: _rounds_elsewhere(Path(place) / path.name, path) for place in places}
    return {number for number, its in found.items() if its.directory and number in kept.get(its.directory, ())}


def _rounds_elsewhere(other: Path, path: Path) -> set[str]:
    """The launches in another ledger; none if it is gone, or if it is this one under another name."""
    try:
        if other.samefile(path):
            return set()
        return {event["round"] for event in disk.read_jsonl(other) if event.get("event") == QUEUEING}
    except OSError:
        return set()


def since_cancel(path: Path) -> set[Key] | None:
    """The tasks that were queued since the campaign was cancelled; None if it was not, or was run here since."""
    again: set[Key] | None = None
    for event in disk.read_jsonl(path):
        kind = event.get("event")
        if kind == ledger.CANCELLED:
            again = set()
        elif kind == ledger.SUBMITTED:
            again = None
        elif kind == QUEUED and again is not None:
            again |= {(event["stage"], task) for task in event["tasks"] if event["kind"] == "tasks"}
    return again


def read(path: Path, with_copied: bool = False) -> list[Submission]:
    """Every submission that was not taken back, oldest first; arguments as for `launches`."""
    return standing(launches(path, with_copied))


def standing(found: Mapping[str, Launch]) -> list[Submission]:
    """The submissions of those launches that were not taken back, oldest first."""
    return [one for its in found.values() if its.state != WITHDRAWN for one in its.submissions]


def newest(submissions: Iterable[Submission]) -> dict[Key, tuple[int, str]]:
    """Of every task that was ever queued: (place of its newest submission in the list, Slurm's id of its element)."""
    return {key: (place, identity) for place, one in enumerate(submissions) for identity, key in one.elements()}
