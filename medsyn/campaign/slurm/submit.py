"""Queue a campaign: one `sbatch` per array and gate, all of it held, then the ledger, then the release.

Until the release nothing can run, so a launcher that is interrupted takes everything back, and one that is killed
leaves held jobs under recorded names, which the next submission takes back. Submitting again queues what is neither
done nor in the queue, and lets jobs in the queue wait for what was queued anew.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medsyn.campaign import records
from medsyn.campaign.plan import Key
from medsyn.campaign.records import Campaign
from medsyn.campaign.slurm import entry, graph, queue
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.graph import Graph, Queued
from medsyn.campaign.slurm.queue import QueueView
from medsyn.campaign.slurm.round import Functions, Round, Say, take_back_unreleased
from medsyn.campaign.slurm.site import Site
from medsyn.campaign.slurm.submissions import Submission
from medsyn.errors import InputProblems, Problem, SlurmError

SLURMS_MAX_ARRAY_SIZE = 1001
LEAVING_SECONDS = 60.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What a submission found and did."""

    done: int
    in_queue: int
    queued: int  # tasks
    arrays: int
    gates: int
    total: int

    @property
    def all_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.done == self.total

    def lines(self) -> list[str]:
        """The outcome in words."""
        if self.all_done:
            return ["everything is done; nothing to do"]
        queued = f"queued {self.queued} tasks in {self.arrays} arrays, and {self.gates} gates"
        return [f"{queued}; {self.done} tasks were done, {self.in_queue} in the queue"]


def submit(
    campaign: Campaign,
    site: Site,
    only: Collection[Key] | None = None,
    say: Say = print,
    functions: Functions = (entry.run_task, entry.run_gate),
) -> Outcome:
    """Queue everything of the campaign that is neither done nor in the queue; the caller holds the campaign's lock.

    Args:
        campaign: the prepared campaign.
        site: the cluster.
        only: queue none but these tasks.
        say: where progress is told, line by line.
        functions: what the jobs run: a task, a gate.

    Raises:
        SlurmError: Slurm refused or did not answer; nothing of this submission stays in the queue.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP, before the release.
    """
    path = campaign.directory.ledger
    take_back_unreleased(path, say)
    submissions = on_record.read(path)
    view = _settled_view(submissions)
    done = records.done_keys(campaign, campaign.plan)
    if only is None and len(done) == len(campaign.plan.tasks):
        return Outcome(len(done), 0, 0, 0, 0, len(done))
    if only is None:
        done -= {planned.key for planned in campaign.plan.by_stage["evaluate"]}  # there will be more to evaluate
    known = campaign.plan.by_key  # shards may have been dealt otherwise since: their jobs find nothing to do and end
    queued = graph.queued(submissions, {k: job.id for k, job in view.tasks.items() if k in known}, view.gates)
    if only is not None:
        _require_needs(campaign, only, done | queued.tasks.keys())
    wanted = graph.build(campaign.plan, done, queued, chunk_size(site), only)
    its = Round(campaign, site, functions, say)
    held = its.queue(wanted) if wanted.nodes else []
    repoint(campaign, its, wanted, submissions, view, queued, done)
    if wanted.nodes:
        its.release(held)
    for job in (*view.tasks.values(), *view.gates.values()):
        if job.is_held:
            queue.call("scontrol", "release", job.id)
            say(f"{job.id}  was held and is released")
    return Outcome(
        len(done),
        len(view.tasks.keys() - done),
        sum(len(node.tasks) for node in wanted.nodes if node.kind == "tasks"),
        sum(node.kind == "tasks" for node in wanted.nodes),
        sum(node.kind == "gate" for node in wanted.nodes),
        len(campaign.plan.tasks),
    )


def _require_needs(campaign: Campaign, only: Collection[Key], there: Collection[Key]) -> None:
    """Raise InputProblems if a chosen task needs one that is neither done nor queued, nor chosen."""
    problems = [
        Problem(
            "--only",
            f"{' '.join(key)} needs {' '.join(need)}, which is neither done nor in the queue: "
            f"add --only {':'.join(need)}, or leave --only out",
        )
        for key in campaign.plan.by_key
        if key in only and key not in there
        for need in campaign.plan.by_key[key].needs
        if need not in there and need not in only
    ]
    if problems:
        raise InputProblems(problems)


def _settled_view(submissions: Sequence[Submission]) -> QueueView:
    """The queue, once no job of the campaign is on its way out: it may be about to come back, or to be gone."""
    end = time.monotonic() + LEAVING_SECONDS
    while True:
        view = queue.view(submissions)
        if view.problem:
            raise SlurmError(view.problem)
        leaving = [job.id for job in (*view.tasks.values(), *view.gates.values()) if job.state == "COMPLETING"]
        if not leaving or time.monotonic() > end:
            return view
        time.sleep(POLL_SECONDS)


def assumed_chunk(site: Site) -> int:
    """Most elements of one array where no cluster can be asked: the site's word, or Slurm's own default."""
    return site.max_array_size or SLURMS_MAX_ARRAY_SIZE


def chunk_size(site: Site) -> int:
    """Most elements of one array: the site's word, or the cluster's MaxArraySize, which is the largest index + 1."""
    return site.max_array_size or int(queue.cluster_settings().get("MaxArraySize", SLURMS_MAX_ARRAY_SIZE))


def repoint(
    campaign: Campaign,
    its: Round,
    wanted: Graph,
    before: Sequence[Submission],
    view: QueueView,
    queued: Queued,
    done: Collection[Key],
) -> None:
    """Let jobs in the queue wait for what was queued anew, and forget parents that can never be met."""
    plan = campaign.plan
    for submission in before:
        jobs = {key: view.tasks[key] for _, key in submission.elements() if key in queued.tasks}
        waiting = [key for key, job in jobs.items() if job.waits]
        if not waiting:
            continue
        gates, old = graph.dependencies((plan.by_key[key] for key in waiting), wanted.gate_of, queued, done)
        ids = [*(its.made[gate].job for gate in gates), *old]
        stuck = any(jobs[key].reason == queue.NEVER for key in waiting)
        if stuck or any(identity not in _ids(jobs[waiting[0]].dependency) for identity in ids):
            text = "afterok:" + ":".join(ids) if ids else ""
            queue.call("scontrol", "update", f"JobId={submission.job}", f"Dependency={text}")
            its.say(f"{submission.job}  {submission.stage} in the queue waits for it")


def _ids(dependency: str) -> list[str]:
    """The jobs in squeue's words, such as `afterok:12(unfulfilled),afterany:13_2(unfulfilled)`."""
    return re.findall(r":(\d+(?:_\d+)?)", dependency)
