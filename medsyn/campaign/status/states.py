"""A task's state as a pure function of what the files and Slurm's queue say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from medsyn.campaign import attempts
from medsyn.campaign.attempts import Attempts
from medsyn.campaign.slurm.queue import NEVER, Job

State = Literal["done", "running", "preempted", "pending", "failed", "blocked", "idle", "unknown"]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("running", "preempted", "pending", "unknown")  # something may happen by itself
BAD_ENDS = ("FAILED", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")  # accounting's words


@dataclass(frozen=True)
class Facts:
    """What is known of one task.

    A task is *lost* if its newest attempt was part of a Slurm job of this campaign and has no end on record: once the
    job is gone from the queue, it was killed together with everything that could have written the end down. A job that
    is gone and of which there is no attempt either ended before the task began, or was cancelled while it waited.
    """

    done: bool = False  # its marker has today's fingerprint
    locked: bool = False  # a process that this machine can see works on it
    job: Job | None = None  # in Slurm's queue
    failed: bool = False  # a failure is on record
    is_final: bool = False  # and trying again would not change it
    attempts: Attempts = attempts.NONE
    is_lost: bool = False
    unbegun: str | None = None  # the newest job it was queued as, if no attempt was part of that
    word: str = ""  # how that job, or the lost one, ended, as accounting has it
    is_known: bool = True  # whether it is in the queue: false if Slurm does not answer
    is_taken_care_of: bool = False  # a launcher is at work that will start or queue it


def judge(facts: Facts, is_blocked: bool) -> State:
    """The task's state.

    Args:
        facts: what is known of it.
        is_blocked: something that it needs has failed.
    """
    if facts.done:
        return "done"
    if facts.locked or (facts.job is not None and not facts.job.waits):
        return "running"
    if facts.job is not None:
        return "blocked" if is_blocked or facts.job.reason == NEVER else _waiting(facts)
    if facts.failed and (facts.is_known or facts.is_final):
        return "failed"
    if not facts.is_known:
        return "blocked" if is_blocked else "unknown"
    if facts.is_lost or (facts.unbegun and facts.word in BAD_ENDS):
        return "failed"
    if is_blocked:
        return "blocked"
    return _waiting(facts) if facts.is_taken_care_of else "idle"


def _waiting(facts: Facts) -> State:
    return "preempted" if facts.attempts.begun else "pending"
