"""One round of queueing: every array and gate handed to sbatch, held; written down; released.

Until the release nothing can run. A launcher that is interrupted takes its round back, and the one after a launcher
that was killed finds the round by the names on record.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import medsyn
from medsyn.campaign import ledger
from medsyn.campaign.records import Campaign
from medsyn.campaign.slurm import container, options, queue, script
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.graph import Graph, Node
from medsyn.campaign.slurm.site import Site
from medsyn.campaign.slurm.submissions import Submission
from medsyn.disk import make_directory
from medsyn.errors import SlurmError

GATE_REQUEUES = 3
BAD_NODES = "bad-nodes"

Say = Callable[[str], None]
Functions = tuple[Callable[..., None], Callable[..., None]]  # what the jobs run: a task, a gate


class Interrupted(Exception):
    """The launcher was told to stop before anything was released; everything it queued has been taken back."""


class Round:
    """One round under way. `made` has what was handed to Slurm, by the node's name."""

    def __init__(self, campaign: Campaign, site: Site, functions: Functions, say: Say) -> None:
        self.campaign = campaign
        self.site = site
        self.functions = functions
        self.say = say
        self.number = secrets.token_hex(4)
        self.path = self.campaign.directory.ledger
        self.environment = container.task_environment(site)
        self.setup = [*container.tell_image(site, campaign), *site.setup]
        self.made: dict[str, Submission] = {}

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
        _release(held, [one.name for one in self.made.values()])
        ledger.record(self.path, on_record.RELEASED, round=self.number)

    def _queue(self, node: Node) -> Submission:
        import submitit  # a login node imports it only to queue

        name = on_record.name_of(node.name, self.campaign.config.campaign.name, self.number)
        folder = make_directory(self.campaign.directory.slurm(name))
        ledger.record(self.path, on_record.QUEUEING, round=self.number, name=name)
        wanted = options.wanted(self.site, node)
        interpreter = container.python(self.site, self.campaign, wanted, self.environment)
        executor = submitit.SlurmExecutor(folder=folder, python=interpreter)
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

    def _parameters(self, node: Node, name: str, folder: Path) -> dict[str, Any]:
        """submitit's parameters of a node's batch script."""
        site, campaign = self.site, self.campaign
        chosen = options.sbatch(site, node, bad_nodes(campaign)) | {"job_name": name}
        if dependency := self._dependency(node):
            chosen["dependency"] = dependency
        if not node.gates and not node.after:
            chosen["hold"] = True
        code = code_folder() if container.image_of(site) is None else None
        if node.kind == "gate":
            after = script.after_gate(folder, GATE_REQUEUES)
        else:
            after = script.after_task(folder, campaign.directory.slurm(BAD_NODES), campaign.config.cluster.max_requeues)
        return {
            "time": None,  # submitit's default of five minutes would be passed on
            "wckey": None,
            "array_parallelism": options.parallelism(site, node),
            "signal_delay_s": site.signal_seconds,
            "stderr_to_stdout": True,
            "setup": script.before(folder, self.environment, self.setup, code),
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


def take_back_unreleased(path: Path, say: Say) -> None:
    """Finish what a killed launcher began: release a round that was ready for it, cancel one that was not."""
    for number, its in on_record.rounds(path).items():
        if its.state == on_record.RELEASING:
            _release(its.held, its.intended)
            ledger.record(path, on_record.RELEASED, round=number)
        elif its.state == on_record.QUEUEING:
            say(f"taking back {len(its.intended)} jobs of a submission that was interrupted")
            withdraw(path, number)


def withdraw(path: Path, number: str) -> None:
    """Cancel every job of a round that was not released, by id and by name, and write that down."""
    queue.cancel(queue.named(set(on_record.rounds(path)[number].intended)))
    ledger.record(path, on_record.WITHDRAWN, round=number)


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


def _release(jobs: Sequence[str], names: Collection[str]) -> None:
    in_queue = queue.arrays(queue.named(set(names)))
    waiting = [job for job in jobs if job in in_queue]
    if waiting:
        queue.call("scontrol", "release", *waiting)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "sbatch --help" not in line]
    told = [line for line in lines if "error:" in line or line.startswith("sbatch:")]
    return (told or lines or ["no reason was given"])[-1].removeprefix("sbatch: ").removeprefix("error: ")


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
