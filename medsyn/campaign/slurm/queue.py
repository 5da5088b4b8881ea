"""What Slurm says about the campaign's jobs: one `squeue`, and one `sacct` for jobs that have left the queue.

Hints only: whether a task is done, its marker says. A controller that does not answer, or a cluster without accounting,
is reported as such and never taken for "finished".
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from medsyn.campaign.slurm.submissions import Submission
from medsyn.campaign.tasks import Key
from medsyn.errors import SlurmError

TIMEOUT_SECONDS = 20.0
WAITING_STATES = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED", "PREEMPTED")
NEVER = "DependencyNeverSatisfied"
# What users set for themselves, or a job around this process: filters and formats that would hide jobs from us.
_HABITS = ("SQUEUE_", "SCANCEL_", "SINFO_", "SACCT_", "SCONTROL_", "SLURM_")


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array, in the queue."""

    id: str  # 123 or 123_4
    state: str  # Slurm's word: PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits: Dependency, Resources, BeginTime, JobHeldUser, ...
    node: str = ""
    dependency: str = ""  # what it still waits for
    priority: int = 1

    @property
    def waits(self) -> bool:
        """Whether it is in the queue and not at work."""
        return self.state in WAITING_STATES

    @property
    def is_held(self) -> bool:
        """Whether it waits for somebody to release it: held by hand, by Slurm, or by the batch script.

        Slurm holds a job by giving it the priority 0; its reason is a sentence that differs between releases.
        """
        return self.waits and self.priority == 0


@dataclass(frozen=True)
class QueueView:
    """The campaign's jobs in Slurm's queue at one moment; `problem` says why Slurm could not be asked."""

    tasks: Mapping[Key, Job] = field(default_factory=dict)
    gates: Mapping[str, Job] = field(default_factory=dict)  # by the name of the submission
    problem: str | None = None


def call(*command: str, timeout: float = TIMEOUT_SECONDS) -> str:
    """Standard output of a Slurm command; raises SlurmError in one line if it fails or does not answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_HABITS)}
    if "SLURM_CONF" in os.environ:
        environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout:.0f} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise SlurmError(f"{command[0]}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def arrays(ids: Iterable[str]) -> list[str]:
    """The jobs that elements belong to: 123 for 123_4, and 123 for itself."""
    return sorted({identity.partition("_")[0] for identity in ids})


def cancel(ids: Iterable[str]) -> None:
    """`scancel` of whole arrays and jobs, many at a time; one that has ended meanwhile is no error."""
    whole = arrays(ids)
    for start in range(0, len(whole), 200):
        with suppress(SlurmError):
            call("scancel", "--quiet", *whole[start : start + 200])


def release(jobs: Iterable[Job], say: Callable[[str], None]) -> None:
    """Release those of the jobs that are held. One that only an administrator may release is told, and stays."""
    for job in jobs:
        if not job.is_held:
            continue
        try:
            call("scontrol", "release", job.id)
            say(f"{job.id}  was held ({job.reason}) and has been released")
        except SlurmError as error:
            say(f"{job.id}  is held ({job.reason}) and cannot be released: {error}; ask your cluster's administrators")


def cluster_settings() -> dict[str, str]:
    """What `scontrol show config` says."""
    pairs = (line.split("=", 1) for line in call("scontrol", "show", "config").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def settings_if_any() -> dict[str, str]:
    """`cluster_settings`; none where Slurm does not answer."""
    with suppress(SlurmError):
        return cluster_settings()
    return {}


def own_jobs(timeout: float = TIMEOUT_SECONDS) -> dict[str, tuple[str, Job]]:
    """Every job of this user in the queue, array elements singly: id -> (name, job).

    Raises:
        SlurmError: the controller does not answer.
    """
    jobs = {}
    for line in call("squeue", "-h", "-r", "-a", "--me", "-o", "%i|%T|%r|%N|%E|%Q|%j", timeout=timeout).splitlines():
        identity, state, reason, node, dependency, priority, name = line.split("|", 6)
        dependency = "" if dependency == "(null)" else dependency
        jobs[identity] = (name, Job(identity, state, reason, node, dependency, int(priority)))
    return jobs


def named(names: Collection[str]) -> set[str]:
    """Ids of this user's jobs in the queue, array elements singly, whose name is one of `names`."""
    return {identity for identity, (name, _) in own_jobs().items() if name in names}


def view(submissions: Iterable[Submission], timeout: float = TIMEOUT_SECONDS) -> QueueView:
    """The jobs of these submissions that are in the queue; of a task that was queued twice the newest."""
    try:
        jobs = own_jobs(timeout)
    except SlurmError as error:
        return QueueView(problem=str(error))
    tasks: dict[Key, Job] = {}
    gates: dict[str, Job] = {}
    for submission in submissions:
        if submission.kind == "gate" and jobs.get(submission.job, ("",))[0] == submission.name:
            gates[submission.name] = jobs[submission.job][1]
        for identity, key in submission.elements():
            if jobs.get(identity, ("",))[0] == submission.name:  # Slurm reuses ids
                tasks[key] = jobs[identity][1]
    return QueueView(tasks, gates)


def ended(ids: Collection[str], timeout: float = TIMEOUT_SECONDS) -> dict[str, str]:
    """How jobs that have left the queue ended, from accounting (`OUT_OF_MEMORY`); empty without accounting."""
    if not ids:
        return {}
    command = ("sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", ",".join(arrays(ids)))
    try:
        lines = call(*command, timeout=timeout).splitlines()
    except SlurmError:
        return {}
    states = dict(line.split("|", 1) for line in lines if "|" in line)
    return {identity: states[identity].partition(" ")[0] for identity in ids if identity in states}
