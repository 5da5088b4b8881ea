"""A campaign's status at one moment: every task's state, and why it is in it.

A task's state is a pure function of what its files and Slurm's queue say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from medsyn import errors
from medsyn.campaign.slurm.queue import NEVER, Job
from medsyn.campaign.slurm.submissions import Submission
from medsyn.campaign.state import attempts
from medsyn.campaign.state.attempts import Attempts
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.status import logs
from medsyn.campaign.tasks import Key

State = Literal["done", "running", "preempted", "pending", "failed", "blocked", "cancelled", "idle", "unknown"]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("running", "preempted", "pending", "unknown")  # something may happen by itself
BAD_ENDS = ("FAILED", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")  # as accounting names them


@dataclass(frozen=True)
class Evidence:
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
    stumbled: bool = False  # and the batch script says that it ended before the task began
    word: str = ""  # how that job, or the lost one, ended, as accounting has it
    is_known: bool = True  # whether it is in the queue: false if Slurm does not answer
    is_cancelled: bool = False  # the campaign was cancelled, and the task was not queued since
    is_taken_care_of: bool = False  # a launcher is at work that will start or queue it


def judge(evidence: Evidence, is_blocked: bool) -> State:
    """The task's state.

    Args:
        evidence: what is known of it.
        is_blocked: something that it needs has failed.
    """
    if evidence.done:
        return "done"
    if evidence.locked or (evidence.job is not None and not evidence.job.waits):
        return "running"
    if evidence.job is not None:
        return "blocked" if is_blocked or evidence.job.reason == NEVER else _waiting(evidence)
    if evidence.failed and (evidence.is_known or evidence.is_final):
        return "failed"
    if not evidence.is_known:
        return "blocked" if is_blocked else "unknown"
    if evidence.is_lost and not evidence.is_cancelled:
        return "failed"
    if (evidence.is_lost or evidence.unbegun) and (evidence.stumbled or evidence.word in BAD_ENDS):
        return "failed"
    if is_blocked:
        return "blocked"
    if evidence.is_taken_care_of:
        return _waiting(evidence)
    return "cancelled" if evidence.is_cancelled else "idle"


def _waiting(evidence: Evidence) -> State:
    return "preempted" if evidence.attempts.begun else "pending"


NOTHING_KNOWN = Evidence()


@dataclass(frozen=True)
class NextStep:
    """What there is to do: why, and the command to type (None: nothing)."""

    why: str
    command: str | None = None


@dataclass(frozen=True)
class Status:
    """Every task's state, and what it was derived from."""

    campaign: Campaign
    states: Mapping[Key, State]
    blocked_by: Mapping[Key, tuple[Key, ...]]  # of blocked tasks: the failed ones at the root of it
    time: float  # of the look
    evidence: Mapping[Key, Evidence] = field(default_factory=dict)
    made: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)  # what the done tasks' markers say
    submitted: Sequence[Submission] = ()  # what was submitted to Slurm
    held: Collection[Key] = ()  # tasks that wait for ratings
    notes: tuple[str, ...] = ()  # what is wrong with this view: Slurm does not answer, say

    @cached_property
    def by_state(self) -> Mapping[State, list[Key]]:
        """The tasks in each state, in the plan's order."""
        found: dict[State, list[Key]] = {state: [] for state in STATES}
        for planned in self.campaign.plan:
            found[self.states[planned.key]].append(planned.key)
        return found

    @cached_property
    def counts(self) -> Mapping[str, Counter[State]]:
        """How many tasks of each stage are in each state."""
        return {
            stage: Counter(self.states[planned.key] for planned in tasks)
            for stage, tasks in self.campaign.plan.by_stage.items()
        }

    @cached_property
    def _batch_logs(self) -> dict[Key, list[Path]]:
        return logs.batch_logs(self.campaign.directory, self.submitted)

    def log(self, key: Key) -> Path | None:
        """The file with the task's output, if there is any."""
        return logs.find(self.campaign.directory.log(*key), self._batch_logs.get(key, ()))

    @property
    def on_slurm(self) -> bool:
        """Whether any of the campaign was submitted to Slurm."""
        return bool(self.submitted)

    @property
    def is_active(self) -> bool:
        """Whether something may still happen by itself."""
        return any(self.by_state[state] for state in ACTIVE)

    @property
    def needs_ratings(self) -> bool:
        """Whether everything that could be rated is there, and only ratings are missing for the rest to go on."""
        return bool(self.held) and all(
            self.states[key] in ("idle", "cancelled") if key in self.held else state in ("done", "failed", "blocked")
            for key, state in self.states.items()
        )

    @property
    def exit_code(self) -> int:
        """EXIT_DONE if all is done, EXIT_FAILED if something failed, EXIT_SAVED while there is more to come."""
        if self.by_state["failed"]:
            return errors.EXIT_FAILED
        return errors.EXIT_DONE if len(self.by_state["done"]) == len(self.states) else errors.EXIT_SAVED

    @property
    def next_step(self) -> NextStep:
        """What to do now."""
        failed, active = self.by_state["failed"], self.is_active
        if len(self.by_state["done"]) == len(self.states):
            return NextStep("everything is done")
        if self.by_state["unknown"]:
            return NextStep("when Slurm answers again", "status")
        if failed:
            return NextStep("once the cause is fixed", "resume")
        if self.needs_ratings:
            return NextStep("once the ratings are there", "resume")
        if any(self.is_held(key) for key in self.states):
            return NextStep("to release what is held", "resume")
        if self.by_state["cancelled"]:
            return NextStep("it was cancelled; to continue", "resume")
        if self.by_state["idle"] or not active:
            return NextStep("to continue", "resume")
        return NextStep("to follow it", "status --watch")

    def why(self, key: Key) -> str:
        """Why the task is in its state, in one line; empty where there is nothing to say."""
        evidence, state = self.evidence.get(key, NOTHING_KNOWN), self.states[key]
        if state == "running":
            return self._progress(key, evidence)
        if state == "failed":
            return self._failure(key, evidence)
        if state == "blocked":
            return self._block(key, evidence)
        if state == "unknown":
            return "Slurm does not answer"
        if state == "cancelled" and evidence.is_lost:
            return f"job {evidence.attempts.job} on {evidence.attempts.host}{_says(evidence.word)}"
        if state == "idle" and key in self.held:
            return "waits for ratings"
        if state in ("cancelled", "idle") and evidence.unbegun:
            return f"job {evidence.unbegun} left the queue before it began{_says(evidence.word)}{self._last_word(key)}"
        return ", ".join(word for word in (self._wait(evidence), evidence.attempts.reason) if word and word != "None")

    def is_held(self, key: Key) -> bool:
        """Whether the task waits for somebody to release its job."""
        job = self.evidence.get(key, NOTHING_KNOWN).job
        return job is not None and job.is_held

    def _wait(self, evidence: Evidence) -> str:
        """Slurm's reason why the task's job waits."""
        if evidence.job is None:
            return ""
        return f"held: {evidence.job.reason}" if evidence.job.is_held else evidence.job.reason

    def _last_word(self, key: Key) -> str:
        """The last line of Slurm or the batch script, if the task itself has printed nothing."""
        path = logs.find(self.campaign.directory.log(*key), self._batch_logs.get(key, ()))
        said = logs.last_lines(path, 1) if path else []
        return f"; its log ends with: {said[0]}" if said else ""

    def _progress(self, key: Key, evidence: Evidence) -> str:
        heartbeat = attempts.progress(self.campaign.directory, key)
        said = [attempts.in_words(heartbeat) if heartbeat else "starting"]
        if evidence.job:
            said += [
                f"job {evidence.job.id}",
                evidence.job.node,
                "" if evidence.job.state == "RUNNING" else evidence.job.state,
            ]
        return ", ".join(word for word in said if word)

    def _failure(self, key: Key, evidence: Evidence) -> str:
        if failure := attempts.read_failure(self.campaign.directory, key):
            message = str(failure.get("message") or "").splitlines()
            return ": ".join(part for part in (failure.get("error"), message[0] if message else None) if part)
        if evidence.is_lost:
            gone = f"job {evidence.attempts.job} on {evidence.attempts.host} is gone and recorded no end"
            return f"lost: {gone}{_says(evidence.word) or '; accounting has no record of it'}"
        if not evidence.unbegun:
            return ""
        return f"job {evidence.unbegun} ended before it began{_says(evidence.word)}{self._last_word(key)}"

    def _block(self, key: Key, evidence: Evidence) -> str:
        roots = ", ".join(" ".join(root) for root in self.blocked_by.get(key, ()))
        if roots:
            return f"by {roots}"
        return f"by Slurm: {NEVER}, job {evidence.job.id}" if evidence.job else ""


def _says(word: str) -> str:
    return f"; accounting says {word}" if word else ""
