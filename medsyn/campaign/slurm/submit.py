"""Queue a campaign: one `sbatch` per array and gate, all of it held, then the ledger, then the release.

Until the release nothing can run, so a launcher that is interrupted takes everything back, and one that is killed
leaves held jobs under recorded names, which the next submission takes back. Submitting again queues what is neither
done nor in the queue, and makes jobs in the queue wait for newly queued ones.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import medsyn
from medsyn.campaign.slurm import container, graph, limits, pieces, queue, sbatch
from medsyn.campaign.slurm import job as slurm_job
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.graph import Graph, Node, Queued
from medsyn.campaign.slurm.queue import QueueView
from medsyn.campaign.slurm.site import Site
from medsyn.campaign.slurm.submissions import Submission
from medsyn.campaign.state import gate, ledger, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, require_needs
from medsyn.disk import make_directory, private_umask, write_json
from medsyn.errors import SlurmError
from medsyn.stage import GRACE_VARIABLE
from medsyn.text import and_more

SLURMS_MAX_ARRAY_SIZE = 1001
LEAVING_SECONDS = 60.0
POLL_SECONDS = 0.5

GATE_REQUEUES = 3
NAMED = 5  # tasks that a message names one by one
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


def submit(
    campaign: Campaign,
    site: Site,
    only: Collection[Key] | None = None,
    say: Say = print,
    program: str = slurm_job.__name__,
) -> Outcome:
    """Queue everything of the campaign that is neither done nor in the queue; the caller holds the campaign's lock.

    Args:
        campaign: the prepared campaign.
        site: the cluster.
        only: queue only these tasks.
        say: called with each line of progress.
        program: the module that the jobs run.

    Raises:
        SlurmError: Slurm refused or did not answer; nothing of this submission stays in the queue.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP, before the release.
    """
    path = campaign.directory.ledger
    take_back_unreleased(path, say)
    submissions = on_record.read(path)
    view = pieces.with_taken(_settled_view(submissions), campaign)
    done = markers.done_keys(campaign, campaign.plan)
    if only is None and len(done) == len(campaign.plan.tasks):
        return Outcome(len(done), 0, 0, 0, 0, len(done))
    if only is None:
        done -= {planned.key for planned in campaign.plan.by_stage["evaluate"]}  # there will be more to evaluate
    known = campaign.plan.by_key  # the campaign may have been re-sharded since: old jobs find nothing to do and end
    queued = graph.queued(submissions, {k: job.id for k, job in view.tasks.items() if k in known}, view.gates)
    gate.require_none_held(campaign, only)
    if gated := gate.held(campaign):
        say(f"evaluate {gate.why(campaign.directory)}; then submit again")
    chosen = (set(campaign.plan.by_key) if only is None else set(only)) - gated
    if only is not None:
        require_needs(campaign.plan, only, done | queued.tasks.keys(), "neither done nor in the queue")
    tells = bool(campaign.config.cluster.notify)
    wanted = graph.build(campaign.plan, done, queued, chunk_size(site), chosen, tells)
    if reason := limits.too_many(wanted, queue.settings_if_any()):
        raise SlurmError(reason)
    its = Launcher(campaign, site, program, say)
    held = its.queue(wanted) if wanted.nodes else []
    repoint(campaign, its, wanted, submissions, view, queued, done)
    if wanted.nodes:
        its.release(held)
    for line in _waits(campaign, view, only or (), done):
        say(line)
    queue.release((*view.tasks.values(), *view.gates.values()), say)
    return Outcome(
        len(done),
        len(view.tasks.keys() - done),
        sum(len(node.tasks) for node in wanted.nodes if node.kind == "tasks"),
        sum(node.kind == "tasks" for node in wanted.nodes),
        sum(node.kind == "gate" for node in wanted.nodes),
        len(campaign.plan.tasks),
    )


def _waits(campaign: Campaign, view: QueueView, only: Collection[Key], done: Collection[Key]) -> Iterator[str]:
    """Of each chosen task that is in the queue already: its job, and what it waits for."""
    for planned in campaign.plan:
        job = view.tasks.get(planned.key)
        if planned.key not in only or job is None:
            continue
        line = f"{job.id}  {' '.join(planned.key)} is in the queue already"
        missing = [need for need in (*planned.needs, *planned.after) if need not in done]
        needs = [f"{' '.join(need)} ({_where(view.tasks.get(need))})" for need in missing]
        if not job.waits:
            yield f"{line}: {job.state}"
        elif needs:
            yield f"{line}: it waits for {and_more(needs, NAMED)}"
        else:
            yield f"{line}: Slurm says {job.reason}"


def _where(job: queue.Job | None) -> str:
    return f"job {job.id}, {job.state}" if job else "not in the queue"


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
    """Most elements of one array where no cluster can be queried: the site's setting, or Slurm's default."""
    return site.max_array_size or SLURMS_MAX_ARRAY_SIZE


def chunk_size(site: Site) -> int:
    """Most elements of one array: the site's setting, or the cluster's MaxArraySize, which is the largest index + 1."""
    return site.max_array_size or int(queue.cluster_settings().get("MaxArraySize", SLURMS_MAX_ARRAY_SIZE))


def repoint(
    campaign: Campaign,
    its: Launcher,
    wanted: Graph,
    before: Sequence[Submission],
    view: QueueView,
    queued: Queued,
    done: Collection[Key],
) -> None:
    """Make jobs in the queue wait for newly queued ones, and drop dependencies that can never be met."""
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
            its.say(f"{submission.job}  {submission.stage}, already in the queue: dependency updated")


def _ids(dependency: str) -> list[str]:
    """The jobs in squeue's words, such as `afterok:12(unfulfilled),afterany:13_2(unfulfilled)`."""
    return re.findall(r":(\d+(?:_\d+)?)", dependency)


class Interrupted(Exception):
    """The launcher was asked to stop before anything was released; everything it queued has been cancelled."""


class Launcher:
    """One launch under way. `made` has what was submitted to Slurm, by the node's name."""

    def __init__(self, campaign: Campaign, site: Site, program: str, say: Say) -> None:
        self.campaign = campaign
        self.site = site
        self.program = program
        self.say = say
        self.number = secrets.token_hex(4)
        self.path = self.campaign.directory.ledger
        self.environment = {**container.task_environment(site), GRACE_VARIABLE: site.signal_seconds}
        self.setup = [*container.export_image(site, campaign), *site.setup]
        self.made: dict[str, Submission] = {}

    def queue(self, wanted: Graph) -> list[str]:
        """Submit every node to Slurm and record it; return the jobs that are held and have to be released."""
        held = []
        with _stoppable():
            try:
                for node in wanted.nodes:
                    made = self._queue(node)
                    if not node.gates and not node.after:  # nothing of this launch holds it back
                        held.append(made.job)
                    self.say(f"{made.job}  {node.name}: {_count(node)}")
                ledger.record(self.path, on_record.RELEASING, round=self.number, held=held)
            except BaseException as error:
                withdraw(self.path, self.number)
                if isinstance(error, KeyboardInterrupt):
                    raise Interrupted from None
                if isinstance(error, SlurmError):
                    raise SlurmError(f"{error}{limits.way_out(str(error), wanted)}") from None
                raise
        return held

    def release(self, held: Sequence[str]) -> None:
        """Release the held jobs, so that everything can run."""
        _release(held, [one.name for one in self.made.values()])
        ledger.record(self.path, on_record.RELEASED, round=self.number)

    def _queue(self, node: Node) -> Submission:
        """Submit a node: submitit writes the batch script and calls sbatch.

        Its own way to queue an array is a pickle for each element. Here all elements run one command, and a file of the
        submission says which task each of them is.
        """
        import submitit  # a login node imports it only to queue

        name = on_record.name_of(node.name, self.campaign.config.campaign.name, self.number)
        folder = make_directory(self.campaign.directory.slurm(name))
        root = str(self.campaign.directory.root)
        ledger.record(self.path, on_record.QUEUEING, round=self.number, name=name, directory=root)
        wanted = sbatch.wanted_options(self.site, node)
        interpreter = container.python(self.site, self.campaign, wanted, self.environment)
        executor = submitit.SlurmExecutor(folder=folder, python=interpreter)
        executor.update_parameters(**self._parameters(node, name, folder))
        if node.kind == "tasks":
            what = {"stage": node.stage, "tasks": node.tasks, "signal_seconds": self.site.signal_seconds}
            write_json(folder / slurm_job.TASKS, what)
            if len(node.tasks) > 1:
                executor.parameters["map_count"] = len(node.tasks)
        command = f"{interpreter} -u -m {self.program} {shlex.join([node.kind, root, name])}"
        umask = os.umask(private_umask())
        try:
            with _outside_of_jobs():
                job = executor._submit_command(command)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise SlurmError(f"sbatch refused {node.name}: {_reason(error)}") from None
        finally:
            os.umask(umask)
        for link in folder.glob(".submission_file_*"):  # to the batch script, beside it
            link.unlink()
        made = Submission(name, node.kind, node.stage, node.tasks, job.job_id)
        self.made[node.name] = made
        facts = {"name": name, "kind": made.kind, "stage": made.stage, "tasks": list(made.tasks), "job": made.job}
        ledger.record(self.path, on_record.QUEUED, round=self.number, **facts)
        return made

    def _parameters(self, node: Node, name: str, folder: Path) -> dict[str, Any]:
        """submitit's parameters of a node's batch script."""
        site, campaign = self.site, self.campaign
        chosen = sbatch.sbatch_options(site, node, bad_nodes(campaign)) | {"job_name": name}
        if dependency := self._dependency(node):
            chosen["dependency"] = dependency
        if not node.gates and not node.after:
            chosen["hold"] = True
        goes_on = node.kind == "tasks" and len(node.tasks) > 1 and pieces.is_on(campaign, node.stage)
        setup = [*pieces.SAY_END.strip().splitlines(), *self.setup] if goes_on else self.setup
        code = code_folder() if container.image_of(site) is None else None
        if node.kind == "gate":
            after = sbatch.after_gate(folder, GATE_REQUEUES)
        else:
            after = sbatch.after_task(folder, campaign.directory.slurm(BAD_NODES), campaign.config.cluster.max_requeues)
        return {
            "time": None,  # submitit's default of five minutes would be passed on
            "wckey": None,
            "array_parallelism": sbatch.parallelism(site, node),
            "signal_delay_s": site.signal_seconds,
            "stderr_to_stdout": True,
            "setup": sbatch.before(folder, self.environment, setup, code, after, node.kind == "tasks"),
            "teardown": sbatch.END,
            "additional_parameters": chosen,
            "srun_args": sbatch.srun_options(site, node),
        }

    def _dependency(self, node: Node) -> str | None:
        """sbatch's --dependency: gates come after tasks however they ended, tasks after gates that succeeded."""
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


def take_back_unreleased(path: Path, say: Say) -> None:
    """Finish what a killed launcher began: release a launch that was ready for it, cancel one that was not."""
    for number, its in on_record.launches(path).items():
        if its.state == on_record.RELEASING:
            _release(its.held, its.intended)
            ledger.record(path, on_record.RELEASED, round=number)
        elif its.state == on_record.QUEUEING:
            say(f"cancelling {len(its.intended)} jobs of an interrupted submission")
            withdraw(path, number)


def withdraw(path: Path, number: str) -> None:
    """Cancel every job of a launch that was not released, by id and by name, and record that."""
    queue.cancel(queue.named(set(on_record.launches(path)[number].intended)))
    ledger.record(path, on_record.WITHDRAWN, round=number)


def bad_nodes(campaign: Campaign) -> list[str]:
    """Nodes on which a task of the campaign failed because of the machine."""
    try:
        lines = campaign.directory.slurm(BAD_NODES).read_text().split()
    except OSError:
        return []
    return sorted(set(lines))


def code_folder() -> Path:
    """The directory that holds the medsyn package."""
    return Path(medsyn.__file__).parents[1]


def _count(node: Node) -> str:
    tasks = "1 task" if len(node.tasks) == 1 else f"{len(node.tasks)} tasks"
    return tasks if node.kind == "tasks" else f"looks at {tasks}"


def _release(jobs: Sequence[str], names: Collection[str]) -> None:
    in_queue = queue.arrays(queue.named(set(names)))
    waiting = [job for job in jobs if job in in_queue]
    if waiting:
        queue.call("scontrol", "release", *waiting)


def _reason(error: Exception) -> str:
    """What sbatch said: it names a limit in one line, and what that means in the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "sbatch --help" not in line]
    errors = [line for line in lines if "error:" in line or line.startswith("sbatch:")] or lines[-1:]
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in errors]
    return ": ".join(dict.fromkeys(said)) or "no reason was given"


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the variables of a job around this process from the jobs queued here, except for SLURM_CONF."""
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
