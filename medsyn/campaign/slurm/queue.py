"""What Slurm says of the campaign's jobs: one `squeue`, and one `sacct` for jobs that have left the queue.

Hints only: whether a task is done, its marker says. A controller that does not answer, or a cluster without
accounting, is told as such and never read as "finished".
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from medsyn.campaign.plan import Key
from medsyn.campaign.slurm.submissions import Submission

TIMEOUT_SECONDS = 20.0
WAITING_STATES = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED", "PREEMPTED")
NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array, in the queue."""

    id: str  # 123 or 123_4
    state: str  # Slurm's word: PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits: Dependency, Resources, BeginTime, JobHeldUser, ...
    node: str = ""
    dependency: str = ""  # what it still waits for

    @property
    def waits(self) -> bool:
        """Whether it is in the queue and not at work."""
        return self.state in WAITING_STATES


@dataclass(frozen=True)
class QueueView:
    """The campaign's jobs in Slurm's queue at one moment; `problem` says why Slurm could not be asked."""

    tasks: Mapping[Key, Job] = field(default_factory=dict)
    gates: Mapping[str, Job] = field(default_factory=dict)  # by the name of the submission
    problem: str | None = None


class SlurmError(Exception):
    """A Slurm command failed; the message is its last line."""


def call(*command: str, timeout: float = TIMEOUT_SECONDS) -> str:
    """Standard output of a Slurm command; raises SlurmError in one line if it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout:.0f} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise SlurmError(f"{command[0]}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def cancel(ids: Sequence[str]) -> None:
    """`scancel` of jobs, many at a time; one that has ended meanwhile is no error."""
    for start in range(0, len(ids), 200):
        with suppress(SlurmError):
            call("scancel", "--quiet", *ids[start : start + 200])


def cluster_settings() -> dict[str, str]:
    """What `scontrol show config` says."""
    pairs = (line.split("=", 1) for line in call("scontrol", "show", "config").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def own_jobs(timeout: float = TIMEOUT_SECONDS) -> dict[str, tuple[str, Job]]:
    """Every job of this user in the queue, array elements singly: id -> (name, job).

    Raises:
        SlurmError: the controller does not answer.
    """
    jobs = {}
    for line in call("squeue", "-h", "-r", "--me", "-o", "%i|%T|%r|%N|%E|%j", timeout=timeout).splitlines():
        identity, state, reason, node, dependency, name = line.split("|", 5)
        jobs[identity] = (name, Job(identity, state, reason, node, "" if dependency == "(null)" else dependency))
    return jobs


def view(submissions: Iterable[Submission], timeout: float = TIMEOUT_SECONDS) -> QueueView:
    """The jobs of these submissions that are in the queue; of a task that was queued twice the newest."""
    try:
        jobs = own_jobs(timeout)
    except SlurmError as error:
        return QueueView(problem=str(error))
    tasks: dict[Key, Job] = {}
    gates: dict[str, Job] = {}
    for submission in submissions:
        if submission.kind == "gate" and submission.job in jobs:
            gates[submission.name] = jobs[submission.job][1]
        for identity, key in submission.elements():
            if identity in jobs:
                tasks[key] = jobs[identity][1]
    return QueueView(tasks, gates)


def ended(ids: Collection[str], timeout: float = TIMEOUT_SECONDS) -> dict[str, str]:
    """How jobs that have left the queue ended, as accounting has it (`OUT_OF_MEMORY`); empty without accounting."""
    if not ids:
        return {}
    arrays = sorted({identity.partition("_")[0] for identity in ids})
    command = ("sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", ",".join(arrays))
    try:
        lines = call(*command, timeout=timeout).splitlines()
    except SlurmError:
        return {}
    states = dict(line.split("|", 1) for line in lines if "|" in line)
    return {identity: states[identity].partition(" ")[0] for identity in ids if identity in states}
