"""What the job of an element does once its own task is done: the next tasks of its array, in the same process.

Slurm starts elements from the first one on, so a job takes tasks from the last one back, and only those that nobody is
at work on: the task's lock decides. The models of the tasks before stay loaded.

A task that was taken stays its element's own. If the job is asked to leave, the task is saved, and whoever comes first
goes on with it: its element, or this job when it is queued again. An element whose task another job of its array is at
work on leaves it to that job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from medsyn.campaign.slurm.queue import Job, QueueView
from medsyn.campaign.state import attempts, done_index
from medsyn.campaign.state.attempts import Attempts
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, PlannedTask

STAGE = "generate"  # whose tasks are many and short, and need the same models as their neighbours
SPARE = 1.25  # a task must fit into the time left this many times
END_VARIABLE = "MEDSYN_JOB_ENDS"  # in seconds since the epoch; NONE for a job without a time limit
# For the batch script: newer releases of Slurm tell a job itself, older ones must be asked.
SAY_END = f"""
medsyn_ends=${{SLURM_JOB_END_TIME:-$(squeue -h -a -j "$job" -o %e 2>/dev/null)}} || true
export {END_VARIABLE}=$(date -d "$medsyn_ends" +%s 2>/dev/null || echo "$medsyn_ends")
"""


@dataclass(frozen=True)
class Array:
    """The tasks of one job array, in the order of its elements, as one of its jobs sees them."""

    campaign: Campaign
    stage: str
    tasks: Sequence[str]
    signal_seconds: int  # before the job's end, Slurm asks it to leave

    def unfinished(self, job: str) -> Iterator[PlannedTask]:
        """The tasks that an earlier run of this job has taken and not finished."""
        for planned in self._open():
            path = self.campaign.directory.attempts(*planned.key)
            if path.is_file() and attempts.read(path).job == job:
                yield planned

    def next_ones(self) -> Iterator[PlannedTask]:
        """The tasks that may be taken, the last one first. One that has failed is left to its own element."""
        failed = done_index.names(self.campaign.directory.failed(self.stage, "any").parent)
        return (planned for planned in self._open() if planned.task.name not in failed)

    def _open(self) -> Iterator[PlannedTask]:
        done = done_index.names(self.campaign.directory.done(self.stage, "any").parent)
        keys = ((self.stage, name) for name in reversed(self.tasks) if name not in done)
        return (self.campaign.plan.by_key[key] for key in keys if key in self.campaign.plan.by_key)

    def has_time(self, seconds: float) -> bool:
        """Whether a task that takes so long can be done before Slurm asks this job to leave.

        No, where Slurm does not say when that will be.
        """
        end = os.environ.get(END_VARIABLE, "")
        return end == "NONE" or (end.isdigit() and time.time() + SPARE * seconds < int(end) - self.signal_seconds)


def is_on(campaign: Campaign, stage: str) -> bool:
    """Whether jobs of the stage go on with other tasks; those that steal work have made the others' blocks already."""
    section = campaign.config.cluster
    return stage == STAGE and section.continue_in_allocation and not section.claim


def is_taken(campaign: Campaign, key: Key) -> bool:
    """Whether the task's newest attempt is another job's of this job's own array."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), attempts.read(campaign.directory.attempts(*key)).job
    return array is not None and job != attempts.slurm_job() and (job or "").startswith(f"{array}_")


def with_taken(view: QueueView, campaign: Campaign) -> QueueView:
    """The queue, where a job also stands for the tasks that it has taken from its array and that have no job any more.

    Where Slurm has the job, it is at work on them, or will go on with them.
    """
    jobs = {job.id: job for job in view.tasks.values()}
    if not jobs:
        return view
    tried = done_index.names(campaign.directory.attempts(STAGE, "any").parent)
    tried -= done_index.names(campaign.directory.done(STAGE, "any").parent)
    planned = campaign.plan.by_stage.get(STAGE, [])
    its = {
        one.key: attempts.read(campaign.directory.attempts(*one.key))
        for one in planned
        if one.task.name in tried and one.key not in view.tasks
    }
    taken = {key: job for key, tries in its.items() if (job := _carrier(tries, jobs)) is not None}
    return replace(view, tasks={**view.tasks, **taken})


def _carrier(tries: Attempts, jobs: Mapping[str, Job]) -> Job | None:
    """The job that has taken a task and not finished it."""
    return jobs.get(tries.job) if tries.job and (tries.is_open or tries.reason == "saved") else None
