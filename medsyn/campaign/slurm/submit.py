"""Queue a campaign: one `sbatch` per array and gate, all of it held, then the ledger, then the release.

Until the release nothing can run, so a launcher that is interrupted takes everything back, and one that is killed
leaves held jobs under recorded names, which the next submission takes back. Submitting again queues what is neither
done nor in the queue, and lets jobs in the queue wait for what was queued anew.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import medsyn
from medsyn.campaign import ledger, records
from medsyn.campaign.plan import Key
from medsyn.campaign.records import Campaign
from medsyn.campaign.slurm import container, entry, graph, options, queue, script
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.graph import Graph, Node, Queued
from medsyn.campaign.slurm.queue import QueueView, SlurmError
from medsyn.campaign.slurm.site import Site
from medsyn.campaign.slurm.submissions import Submission
from medsyn.disk import make_directory

GATE_REQUEUES = 3
SLURMS_MAX_ARRAY_SIZE = 1001
LEAVING_SECONDS = 60.0
POLL_SECONDS = 0.5
BAD_NODES = "bad-nodes"

Say = Callable[[str], None]


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


class Interrupted(Exception):
    """The launcher was told to stop before anything was released; everything it queued has been taken back."""


def submit(
    campaign: Campaign,
    site: Site,
    only: Collection[Key] | None = None,
    say: Say = print,
    functions: tuple[Callable[..., None], Callable[..., None]] = (entry.run_task, entry.run_gate),
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
    if missing_others(campaign, done, only):
        done -= {planned.key for planned in campaign.plan if planned.task.stage == "evaluate"}
    known = campaign.plan.by_key  # shards may have been dealt otherwise since: their jobs find nothing to do and end
    queued = graph.queued(submissions, {k: job.id for k, job in view.tasks.items() if k in known}, view.gates)
    wanted = graph.build(campaign.plan, done, queued, chunk_size(site), only)
    its = _Round(campaign, site, functions, say)
    held = its.queue(wanted) if wanted.nodes else []
    its.repoint(wanted, submissions, view, queued, done)
    if wanted.nodes:
        its.release(held)
    return Outcome(
        len(done),
        len(view.tasks.keys() - done),
        sum(len(node.tasks) for node in wanted.nodes if node.kind == "tasks"),
        sum(node.kind == "tasks" for node in wanted.nodes),
        sum(node.kind == "gate" for node in wanted.nodes),
        len(campaign.plan.tasks),
    )


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


def missing_others(campaign: Campaign, done: Collection[Key], only: Collection[Key] | None) -> bool:
    """Whether more than the evaluation is to be made, so that there will be more to evaluate."""
    return only is None and any(
        planned.key not in done for planned in campaign.plan if planned.task.stage != "evaluate"
    )


def assumed_chunk(site: Site) -> int:
    """Most elements of one array where no cluster can be asked: the site's word, or Slurm's own default."""
    return site.max_array_size or SLURMS_MAX_ARRAY_SIZE


def chunk_size(site: Site) -> int:
    """Most elements of one array: the site's word, or the cluster's MaxArraySize, which is the largest index + 1."""
    return site.max_array_size or int(queue.cluster_settings().get("MaxArraySize", SLURMS_MAX_ARRAY_SIZE))


def take_back_unreleased(path: Path, say: Say) -> None:
    """Finish what a killed launcher began: release a round that was ready for it, cancel one that was not."""
    for number, its in on_record.rounds(path).items():
        if its.state == on_record.RELEASING:
            _release(its.held)
            ledger.record(path, on_record.RELEASED, round=number)
        elif its.state == on_record.QUEUEING:
            say(f"taking back {len(its.intended)} jobs of a submission that was interrupted")
            withdraw(path, number)


def withdraw(path: Path, number: str) -> None:
    """Cancel every job of a round that was not released, by id and by name, and write that down."""
    its = on_record.rounds(path)[number]
    names = set(its.intended)
    lost = [identity for identity, (name, _) in queue.own_jobs().items() if name in names]
    arrays = sorted({identity.partition("_")[0] for identity in lost})
    queue.cancel(arrays)
    ledger.record(path, on_record.WITHDRAWN, round=number)


@dataclass
class _Round:
    """One submission under way."""

    campaign: Campaign
    site: Site
    functions: tuple[Callable[..., None], Callable[..., None]]
    say: Say

    def __post_init__(self) -> None:
        self.number = secrets.token_hex(4)
        self.path = self.campaign.directory.ledger
        self.made: dict[str, Submission] = {}  # by the node's name

    def queue(self, wanted: Graph) -> list[str]:
        """Hand every node to Slurm and write it down; return the jobs that are held and have to be released."""
        held = []
        with _stoppable():
            try:
                for node in wanted.nodes:
                    made = self._queue(node)
                    if not node.gates and not node.after:  # nothing of this round holds it back
                        held.append(made.job)
                    self.say(f"{made.job}  {node.name}: {_count(node)}")
                ledger.record(self.path, on_record.RELEASING, round=self.number, held=held)
            except BaseException as error:
                withdraw(self.path, self.number)
                if isinstance(error, KeyboardInterrupt):
                    raise Interrupted from None
                raise
        return held

    def release(self, held: Sequence[str]) -> None:
        """Let it run."""
        _release(held)
        ledger.record(self.path, on_record.RELEASED, round=self.number)

    def _queue(self, node: Node) -> Submission:
        import submitit  # a login node imports it only to queue

        name = on_record.name_of(node.name, self.campaign.config.campaign.name, self.number)
        folder = make_directory(self.campaign.directory.slurm(name))
        ledger.record(self.path, on_record.QUEUEING, round=self.number, name=name)
        executor = submitit.SlurmExecutor(folder=folder, python=self._python(node))
        executor.update_parameters(**self._parameters(node, name, folder))
        task, gate = self.functions
        root = str(self.campaign.directory.root)
        umask = os.umask(0o027)
        try:
            with _outside_of_jobs():
                if node.kind == "gate":
                    jobs = [executor.submit(gate, root, name, str(folder))]
                else:
                    rows = [(root, node.stage, name) for name in node.tasks]
                    jobs = executor.map_array(task, *zip(*rows, strict=True))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise SlurmError(f"sbatch refused {node.name}: {_reason(error)}") from None
        finally:
            os.umask(umask)
        made = Submission(name, node.kind, node.stage, node.tasks, jobs[0].job_id.partition("_")[0])
        self.made[node.name] = made
        facts = {"name": name, "kind": made.kind, "stage": made.stage, "tasks": list(made.tasks), "job": made.job}
        ledger.record(self.path, on_record.QUEUED, round=self.number, **facts)
        return made

    def _python(self, node: Node) -> str:
        return container.python(self.site, self.campaign)

    def _parameters(self, node: Node, name: str, folder: Path) -> dict[str, Any]:
        """submitit's parameters of a node's batch script."""
        site, campaign = self.site, self.campaign
        chosen = options.sbatch(site, node, bad_nodes(campaign)) | {"job_name": name}
        if dependency := self._dependency(node):
            chosen["dependency"] = dependency
        if not node.gates and not node.after:
            chosen["hold"] = True
        if node.kind == "gate":
            after = script.after_gate(folder, GATE_REQUEUES)
        else:
            after = script.after_task(campaign.directory.slurm(BAD_NODES), campaign.config.cluster.max_requeues)
        return {
            "time": None,  # submitit's default of five minutes would be passed on
            "wckey": None,
            "array_parallelism": options.parallelism(site, node),
            "signal_delay_s": site.signal_seconds,
            "stderr_to_stdout": True,
            "setup": script.before(site.environment, site.setup, None if site.container else code_folder()),
            "teardown": after,
            "additional_parameters": chosen,
            "srun_args": options.srun(site, node),
        }

    def _dependency(self, node: Node) -> str | None:
        """Gates come after tasks however they ended, tasks after gates that could decide."""
        if node.kind == "gate":
            return "afterany:" + ":".join(self._looked_at(node))
        ids = [*(self.made[gate].job for gate in node.gates), *node.queued_gates]
        return "afterok:" + ":".join(ids) if ids else None

    def _looked_at(self, gate: Node) -> Iterator[str]:
        """Slurm's ids of what the gate comes after: whole arrays, or those of their elements that it looks at."""
        yield from gate.queued_tasks
        looked_at = set(gate.tasks)
        for name in gate.after:
            made = self.made[name]
            mine = [index for index, task in enumerate(made.tasks) if task in looked_at]
            if len(mine) == len(made.tasks):
                yield made.job
            else:
                yield from (made.element(index) for index in mine)

    def repoint(
        self, wanted: Graph, before: Sequence[Submission], view: QueueView, queued: Queued, done: Collection[Key]
    ) -> None:
        """Let jobs in the queue wait for what was queued anew, and forget parents that can never be met."""
        plan = self.campaign.plan
        for submission in before:
            waiting = [key for _, key in submission.elements() if key in queued.tasks and view.tasks[key].waits]
            if not waiting:
                continue
            gates, old = graph.dependencies((plan.by_key[key] for key in waiting), wanted.gate_of, queued, done)
            stuck = any(view.tasks[key].reason == queue.NEVER for key in waiting)
            if not gates and not stuck:
                continue
            ids = [*(self.made[gate].job for gate in gates), *old]
            text = "afterok:" + ":".join(ids) if ids else ""
            queue.call("scontrol", "update", f"JobId={submission.job}", f"Dependency={text}")
            self.say(f"{submission.job}  {submission.stage} in the queue waits for it")


def bad_nodes(campaign: Campaign) -> list[str]:
    """Nodes on which a task of the campaign failed for the machine's reasons."""
    try:
        lines = campaign.directory.slurm(BAD_NODES).read_text().split()
    except OSError:
        return []
    return sorted(set(lines))


def code_folder() -> Path:
    """The folder that holds the medsyn package."""
    return Path(medsyn.__file__).parents[1]


def _count(node: Node) -> str:
    tasks = "1 task" if len(node.tasks) == 1 else f"{len(node.tasks)} tasks"
    return tasks if node.kind == "tasks" else f"looks at {tasks}"


def _release(jobs: Sequence[str]) -> None:
    in_queue = {identity.partition("_")[0] for identity in queue.own_jobs()}
    waiting = [job for job in jobs if job in in_queue]
    if waiting:
        queue.call("scontrol", "release", *waiting)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line]
    return (told or lines or ["no reason was given"])[-1].removeprefix("sbatch: error: ")


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """What a job around this process says of itself does not reach the jobs queued here; which cluster it is does."""
    import submitit

    cluster = os.environ.get("SLURM_CONF")
    with submitit.helpers.clean_env():
        if cluster is not None:
            os.environ["SLURM_CONF"] = cluster
        yield


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, so that nothing stays in the queue half-made."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
