"""A small scheduler for one machine: the same plan, the same worker, the same exit codes as on a cluster.

Starts a task when the plan allows it, at most `max_parallel` at once, GPUs assigned round-robin. A worker that saved
and left, or was killed, is started again; so is one that crashed, until it crashes twice at the same place.
"""

from __future__ import annotations

import os
import select
import signal
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import FrameType

from medsyn import errors
from medsyn.campaign import notify
from medsyn.campaign.local.live_table import Display
from medsyn.campaign.local.processes import WORKER, Process, Processes, Program
from medsyn.campaign.state import attempts, gate, ledger, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, PlannedTask, Settled, require_needs, settle
from medsyn.disk import FILE_MODE, make_directory
from medsyn.models.visible_gpus import visible_gpus

POLL_SECONDS = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Running:
    """A worker at work."""

    planned: PlannedTask
    process: Process
    gpus: list[str]


@dataclass
class _Stop:
    """Whether and how signals have asked to stop."""

    number: int | None = None
    repeated: bool = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.repeated = self.number is not None
        self.number = self.number or number


@dataclass
class _Scheduler:
    campaign: Campaign
    max_parallel: int
    processes: Processes
    display: Display
    gpus: list[str]
    done: set[Key]
    chosen: Collection[Key]
    failed: dict[Key, int] = field(default_factory=dict)  # with the exit code
    restarts: Counter[Key] = field(default_factory=Counter)
    running: dict[Key, Running] = field(default_factory=dict)

    def settled(self) -> Settled:
        return settle(self.campaign.plan, self.done, self.failed)

    def start_ready(self, settled: Settled) -> bool:
        """Start what the plan allows and the machine has room for; return whether something has to wait to be started.

        A task whose process cannot be started yet keeps its place.
        """
        for planned in self.campaign.plan.by_urgency:
            if len(self.running) >= self.max_parallel:
                return False
            is_ready = settled.states[planned.key] == "ready" and planned.key in self.chosen
            if is_ready and planned.key not in self.running:
                if not self.processes.is_ready(planned.key[0], self._like(planned)):
                    return True
                self.start(planned)
        return False

    def _like(self, planned: PlannedTask) -> Sequence[str]:
        """The task that stands for all that load the same, if there are several left; none that a GPU is for.

        Neither are models shared by processes there, nor may the process that is forked touch it.
        """
        stage, modality = planned.task.stage, planned.task.modality
        alike = [other.key for other in self.campaign.plan.by_stage[stage] if other.task.modality == modality]
        left = [key for key in alike if key in self.chosen and key not in self.done and key not in self.failed]
        if self.gpus or len(left) < 2:
            return ()
        return str(self.campaign.directory.root), *alike[0]

    def start(self, planned: PlannedTask) -> None:
        """Start a worker in a session of its own (Ctrl-C is ours to forward), its output in the task's log."""
        directory, (stage, name) = self.campaign.directory, planned.key
        gpus = self._least_used_gpus(self._share(stage))
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        path = directory.log(stage, name)
        make_directory(path.parent)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        try:
            process = self.processes.start((str(directory.root), stage, name), environment, log)
        finally:
            os.close(log)
        self.running[planned.key] = Running(planned, process, gpus)
        ledger.record(directory.ledger, ledger.STARTED, stage=stage, task=name, attempt=self.restarts[planned.key] + 1)
        self.display.started(planned.key)

    def _share(self, stage: str) -> int:
        """How many GPUs a task of the stage gets; `auto` shares them out among those that run at once."""
        wanted = self.campaign.config.finetune.gpus if stage == "finetune" else 1
        if wanted != "auto":
            return wanted
        at_once = min(self.max_parallel, sum(key[0] == stage for key in self.campaign.plan.by_key.keys() - self.done))
        return max(1, len(self.gpus) // max(1, at_once))

    def _least_used_gpus(self, count: int) -> list[str]:
        used = Counter(gpu for running in self.running.values() for gpu in running.gpus)
        return sorted(sorted(self.gpus, key=lambda gpu: used[gpu])[:count], key=self.gpus.index)

    def collect(self, stopping: bool) -> bool:
        """Take note of the workers that have ended; return whether there were any."""
        polled = [(running, running.process.poll()) for running in self.running.values()]
        ended = [(running, code) for running, code in polled if code is not None]
        for running, code in ended:
            key = running.planned.key
            del self.running[key]
            ledger.record(
                self.campaign.directory.ledger,
                ledger.ENDED,
                stage=key[0],
                task=key[1],
                attempt=self.restarts[key] + 1,
                exit_code=code,
            )
            self._judge(running.planned, code, stopping)
        return bool(ended)

    def _judge(self, planned: PlannedTask, code: int, stopping: bool) -> None:
        """What an exit code means for a task: done, failed, or once more."""
        key = planned.key
        if code == errors.EXIT_DONE and (reason := markers.why_not_done(self.campaign, planned)):
            self._fail(key, code, f"ended as if done, but {reason}")
        elif code == errors.EXIT_DONE:
            self.done.add(key)
            self.display.ended(key, "done")
        elif code not in (errors.EXIT_SAVED, errors.EXIT_FAILED) and code >= 0:
            self._fail(key, code, f"failed (exit code {code})")
        elif stopping:
            self.display.ended(key, "stopped")
        elif self.restarts[key] < self.campaign.config.cluster.max_requeues:
            self.restarts[key] += 1
            self.display.ended(key, f"{_say(code)}; restarting it")
        else:
            if code < 0:  # it could not write this down itself
                failure = {"exit_code": code, "error": _say(code), "message": "", "step": None}
                attempts.write_failure(self.campaign.directory, key, failure)
            self._fail(key, code, f"{_say(code)}, and cluster.max_requeues is used up")

    def _fail(self, key: Key, code: int, why: str) -> None:
        self.failed[key] = code
        self.display.ended(key, why)

    def signal_all(self, number: signal.Signals) -> None:
        """Pass a signal on to every worker."""
        for running in self.running.values():
            running.process.send_signal(number)


def run(
    campaign: Campaign,
    display: Display,
    max_parallel: int | None = None,
    program: Program = WORKER,
    only: Collection[Key] | None = None,
) -> int:
    """Run everything of the campaign that is not done; the caller holds the campaign's lock.

    Args:
        campaign: the prepared campaign.
        display: where progress is shown.
        max_parallel: workers at once; `cluster.max_parallel` unless given.
        program: what runs a task; `medsyn worker` unless given.
        only: start only these tasks.

    Returns:
        EXIT_DONE if everything is done, but for what waits for ratings; EXIT_SAVED or 130 if asked to stop; if
        something failed, EXIT_FAILED, or EXIT_BAD_INPUT if bad input was the only cause.
    """
    plan = campaign.plan
    done = markers.done_keys(campaign, plan)
    if len(done) == len(plan.tasks):
        display.nothing_to_do()
        notify.tell(campaign, settle(plan, done, ()), display.say)
        return errors.EXIT_DONE
    if only is None:
        done -= {planned.key for planned in plan.by_stage["evaluate"]}  # there will be more to evaluate
    else:
        require_needs(plan, only, done, "not done", with_after=True)
    held = gate.held(campaign)
    gate.require_none_held(campaign, only)
    gpus = visible_gpus() if campaign.config.device.use_cuda else []
    max_parallel = max_parallel or campaign.config.cluster.max_parallel
    wanted = (set(plan.by_key) if only is None else set(only)) - held
    ledger.record(campaign.directory.ledger, ledger.SUBMITTED, tasks=len(plan.tasks), done=len(done))
    stop = _Stop()
    before = {number: signal.signal(number, stop.ask) for number in STOP_SIGNALS}
    try:
        with (
            Processes(program, display.say, campaign.config.device.cpu_threads, len(wanted - done)) as processes,
            display,
        ):
            scheduler = _Scheduler(campaign, max_parallel, processes, display, gpus, done, wanted)
            _loop(scheduler, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    settled = scheduler.settled()
    display.summary(settled)
    if stop.number is None:
        notify.tell(campaign, settled, display.say)
    if wanted <= scheduler.done:
        return errors.EXIT_DONE
    if stop.number is not None:
        return errors.EXIT_INTERRUPTED if stop.number == signal.SIGINT else errors.EXIT_SAVED
    only_bad_input = set(scheduler.failed.values()) == {errors.EXIT_BAD_INPUT}
    return errors.EXIT_BAD_INPUT if only_bad_input else errors.EXIT_FAILED


def _loop(scheduler: _Scheduler, stop: _Stop) -> None:
    asked = killed = waits = False
    settled = scheduler.settled()
    while True:
        if stop.number is None:
            waits = scheduler.start_ready(settled)
        elif not asked:
            asked, waits = True, False
            count = len(scheduler.running)
            tasks = "1 task" if count == 1 else f"{count} tasks"
            scheduler.display.say(f"stopping: waiting for {tasks} to save; interrupt again to kill")
            scheduler.signal_all(signal.SIGTERM)
        elif stop.repeated and not killed:
            killed = True
            scheduler.signal_all(signal.SIGKILL)
        if not scheduler.running and not waits:
            return
        scheduler.display.show(settled, scheduler.running)
        _wait_for_an_end(scheduler.running.values(), POLL_SECONDS)
        if scheduler.collect(stop.number is not None):
            settled = scheduler.settled()


def _wait_for_an_end(running: Collection[Running], seconds: float) -> None:
    """Until one of the workers has ended, but no longer than so many seconds."""
    with ExitStack() as stack:
        ends = []
        for one in running:
            with suppress(OSError):  # an old kernel
                ends.append(os.pidfd_open(one.process.pid))
                stack.callback(os.close, ends[-1])
        select.select(ends, [], [], seconds)


def _say(code: int) -> str:
    """What an exit code says about how a worker ended."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "saved and left" if code == errors.EXIT_SAVED else "crashed"
