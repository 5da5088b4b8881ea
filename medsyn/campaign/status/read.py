"""Read where a campaign stands: one question to Slurm, then a few listings and summaries of its own files.

Slurm is asked first. A task that ends in between has its marker by the time that the files are read; the other way
round it would look lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from medsyn import errors
from medsyn.campaign import guards
from medsyn.campaign.slurm import pieces, queue, sbatch, submissions
from medsyn.campaign.slurm.queue import QueueView
from medsyn.campaign.slurm.submissions import Launch, Submission
from medsyn.campaign.state import attempts, done_index, gate, locks, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.status.state import Evidence, State, Status, judge
from medsyn.campaign.tasks import Key, Settled, settle

FINAL = (errors.EXIT_BAD_INPUT, errors.EXIT_NO_PROGRESS)  # the worker's word that trying again changes nothing
DONE = Evidence(done=True)


def read(campaign: Campaign, timeout: float = queue.TIMEOUT_SECONDS) -> Status:
    """Where the campaign stands, from its files and Slurm's queue; outputs of done tasks are not checked.

    Args:
        campaign: the prepared campaign.
        timeout: seconds that Slurm may take to answer.
    """
    launches = submissions.launches(campaign.directory.ledger)
    submitted = submissions.standing(launches)
    view = _ask(campaign, submitted, timeout) if submitted else QueueView()
    made = markers.done_facts(campaign)
    evidence = dict.fromkeys(made, DONE) | _with_ends(_Looking(campaign, submitted, view).evidence(made), timeout)
    states, blocked_by = _judge_all(campaign, evidence)
    return Status(
        campaign,
        states,
        blocked_by,
        time=time.time(),
        evidence=evidence,
        made=made,
        submitted=submissions.read(campaign.directory.ledger, with_copied=True),
        held=gate.held(campaign),
        notes=_notes(campaign, launches, view),
    )


def _with_ends(evidence: dict[Key, Evidence], timeout: float) -> dict[Key, Evidence]:
    """Add accounting's state of jobs that are gone without a record of their own, in one question."""
    gone = {
        key: job
        for key, its in evidence.items()
        if its.is_known and its.job is None and (job := its.attempts.job if its.is_lost else its.unbegun)
    }
    words = queue.ended(set(gone.values()), timeout)
    return evidence | {key: replace(evidence[key], word=words[job]) for key, job in gone.items() if job in words}


def of_settled(campaign: Campaign, settled: Settled) -> Status:
    """The status at the end of a local run, as the scheduler that ran it knows it."""
    names: Mapping[str, State] = {"ready": "idle", "waiting": "idle", "done": "done", "failed": "failed"}
    states = {key: names.get(state, "blocked") for key, state in settled.states.items()}
    made, held = markers.done_facts(campaign), gate.held(campaign)
    return Status(campaign, states, settled.blocked_by, time=time.time(), made=made, held=held)


def _ask(campaign: Campaign, submitted: list[Submission], timeout: float) -> QueueView:
    """Slurm's queue, which lists the jobs of the user who asks and no others."""
    owner = campaign.directory.ledger.stat().st_uid
    if owner != os.getuid():
        name = guards.user_name(owner)
        return QueueView(problem=f"the jobs belong to user {name}, and squeue lists your own only")
    return pieces.with_taken(queue.view(submitted, timeout), campaign)


def _notes(campaign: Campaign, launches: Mapping[str, Launch], view: QueueView) -> tuple[str, ...]:
    notes = []
    if view.problem:
        notes.append(f"Slurm could not be queried ({view.problem}): tasks may be in its queue unseen")
    held = [job for job in (*view.tasks.values(), *view.gates.values()) if job.is_held]
    if held:
        first = f"{held[0].id} ({held[0].reason})"
        notes.append(f"{len(held)} jobs are held, including {first}, and wait until resume or scontrol releases them")
    unreleased = [its for its in launches.values() if its.state in (submissions.QUEUEING, submissions.RELEASING)]
    if unreleased and not locks.is_held(campaign.directory.ledger):
        jobs = sum(len(its.intended) for its in unreleased)
        notes.append(f"a launcher was killed before it released the {jobs} jobs it queued: resume fixes that")
    return tuple(notes)


@dataclass(frozen=True)
class _Looking:
    """The look at the tasks that are not done."""

    campaign: Campaign
    submitted: list[Submission]
    view: QueueView

    def evidence(self, done: Collection[Key]) -> dict[Key, Evidence]:
        """What is known of every other task; only files of tasks that have been tried are opened."""
        elements = [element for submission in self.submitted for element in submission.elements()]
        ours = {identity for identity, _ in elements}
        newest = {key: identity for identity, key in elements}
        stumbled = self._stumbled()
        again = submissions.since_cancel(self.campaign.directory.ledger)
        launching = locks.is_held(self.campaign.directory.ledger)
        directory = self.campaign.directory
        found = {}
        for stage, tasks in self.campaign.plan.by_stage.items():
            tried = done_index.names(directory.attempts(stage, "any").parent)
            failed = done_index.names(directory.failed(stage, "any").parent)
            for planned in tasks:
                if (key := planned.key) in done:
                    continue
                path = directory.attempts(*key) if planned.task.name in tried else None
                its = attempts.read(path) if path else attempts.NONE
                is_failed = planned.task.name in failed
                found[key] = Evidence(
                    locked=path is not None and locks.is_held(path),
                    job=self.view.tasks.get(key),
                    failed=is_failed,
                    is_final=is_failed and self._is_final(key),
                    attempts=its,
                    is_lost=its.is_open and its.job in ours,
                    unbegun=job if (job := newest.get(key)) not in its.jobs else None,
                    stumbled=newest.get(key) in stumbled,
                    is_known=not (self.view.problem and key in newest),
                    is_taken_care_of=launching,
                    is_cancelled=again is not None and key not in again,
                )
        return found

    def _stumbled(self) -> set[str]:
        """Slurm's ids of jobs of which a batch script says that they ended before the task began."""
        folders = (self.campaign.directory.slurm(one.name) for one in self.submitted)
        files = (path.name for folder in folders for path in folder.glob(f"{sbatch.STUMBLED}*"))
        return {name.removeprefix(sbatch.STUMBLED) for name in files}

    def _is_final(self, key: Key) -> bool:
        return (attempts.read_failure(self.campaign.directory, key) or {}).get("exit_code") in FINAL


def _judge_all(
    campaign: Campaign, evidence: Mapping[Key, Evidence]
) -> tuple[dict[Key, State], Mapping[Key, tuple[Key, ...]]]:
    """Every task's state, in the plan's order, and what blocks those that are blocked."""
    alone = {key: judge(its, is_blocked=False) for key, its in evidence.items()}
    done = {key for key, state in alone.items() if state == "done"}
    settled = settle(campaign.plan, done, {key for key, state in alone.items() if state == "failed"})
    states = {
        planned.key: judge(evidence[planned.key], is_blocked=settled.states[planned.key] == "blocked")
        for planned in campaign.plan
    }
    return states, {key: roots for key, roots in settled.blocked_by.items() if states[key] == "blocked"}
