"""What a task runs, whoever started it: the local scheduler, a Slurm job, or a person at a prompt.

A task that is done leaves before anything heavy is imported. Otherwise its inputs are checked by record, its stage's
function runs, and the outcome becomes one of the exit codes of `medsyn.errors` and a record on disk.
Any task may be killed at any instruction and run again.

Signals: asking a running task to save and leave.

A handler only sets a flag (docs/architecture.md, rule 3); the stage's loop looks at it where everything is on disk.
"""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeAlias

from medsyn import disk, errors, prctl, time_use
from medsyn.campaign.state import attempts, campaign_file, locks, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, PlannedTask, results_of
from medsyn.config import Config
from medsyn.errors import InputError, InputProblems
from medsyn.launcher import launched
from medsyn.progress import Progress
from medsyn.stage import GRACE_VARIABLE, BadNode, CampaignDirectory, Control, NoProgress, Reader, Saved, Task

StageFunction: TypeAlias = Callable[[Config, Task, CampaignDirectory, Control], None]

# Imported when a task of the stage runs, never before: login nodes do not import torch.
STAGE_FUNCTIONS = {
    "finetune": "medsyn.training.finetune.stage:run",
    "rlhf-stage1": "medsyn.training.scorers.stages:run_stage1",
    "rlhf-stage2": "medsyn.training.scorers.stages:run_stage2",
    "align": "medsyn.training.alignment.stage:run",
    "generate": "medsyn.generation.stage:run",
    "evaluate": "medsyn.evaluation.evaluate:run",
}
# Of those stages that several processes of a launcher share: what the others than the first one run.
FOLLOW_FUNCTIONS = {"finetune": "medsyn.training.finetune.stage:follow"}
DISMISS_FUNCTIONS = {"finetune": "medsyn.training.finetune.stage:dismiss"}  # and the first, if they need not
# Of those stages whose tasks load much: what loads it in a process that is forked, once for many. It touches no GPU.
PRELOAD_FUNCTIONS = {"generate": "medsyn.generation.stage:preload"}
# What the seconds of a stage go to, besides those that it books as something else.
BOOKED_AS = {"rlhf-stage1": time_use.SCORING, "rlhf-stage2": time_use.SCORING, "evaluate": time_use.EVALUATING}
LOCK_POLL_SECONDS = 0.2
TRACEBACK_LINES = 20
# What the CUDA runtime says (cudaGetErrorString) when it is the card, and not the program, that fails.
BROKEN_GPU = ("uncorrectable ECC error", "no CUDA-capable device is detected", "hardware stack error", "GPU is lost")


def run_task(
    root: Path, stage: str, which: str, functions: Mapping[str, str] = STAGE_FUNCTIONS, parent: int | None = None
) -> int:
    """Run one task of a prepared campaign to its exit code.

    Args:
        root: the campaign's directory.
        stage: one of `medsyn.stage.STAGES`.
        which: the task's name or index.
        functions: `module:function` of each stage.
        parent: process id of the scheduler to leave with.

    Raises:
        InputError: there is no such campaign or task.
    """
    campaign = campaign_file.open_campaign(root)
    code = Session(campaign, functions, parent).run(campaign.plan.find(stage, which))
    assert code is not None, "it waits for whoever is at work on the task"
    return code


def _wait(busy: locks.Busy) -> bool:
    return False


class Session:
    """A process that runs tasks of one campaign, one after another; what a stage keeps stays loaded meanwhile."""

    def __init__(self, campaign: Campaign, functions: Mapping[str, str], parent: int | None = None) -> None:
        """`functions` and `parent` as for `run_task`."""
        self.campaign = campaign
        self.worked = False  # whether any task was begun
        self._functions = functions
        self._parent = parent
        self._control = Control()
        self._checked: set[tuple[str, str | None]] = set()
        self._free_since = time_use.allocated_since()  # the place that the process has is of no use to a task

    @property
    def stop_requested(self) -> bool:
        """Whether this process was asked to leave."""
        return self._control.stop_requested

    def run(self, planned: PlannedTask, leave: Callable[[locks.Busy], bool] = _wait) -> int | None:
        """Run one task to its exit code; None if it is left to another process, which is at work on it.

        Args:
            planned: the task.
            leave: asked where another process is at work on it: whether to leave it to that one, and not to wait.
        """
        campaign = self.campaign
        if markers.why_not_done(campaign, planned) is None:
            return _already_done(planned)
        progress, before = Progress(), self._control
        grace = os.environ.get(GRACE_VARIABLE, "")
        control = Control(
            campaign.directory.heartbeat(*planned.key),
            progress=progress,
            grace_seconds=float(grace) if grace.isdigit() else None,
        )
        control.kept, self._control = before.kept, control
        install(control)
        if before.stop_requested:
            control.request_stop()
        if self._parent is not None:
            leave_with_parent(self._parent, control)
        try:
            came = time.time()
            with _lock(campaign.directory.attempts(*planned.key), planned, control, leave):
                if markers.why_not_done(campaign, planned) is None:  # whoever held the lock did it
                    return _already_done(planned)
                self.worked = True
                its = planned.task.stage, planned.task.modality
                facts = {"since": self._free_since, "waited": round(time.time() - came, 3)}
                code = _attempt(
                    campaign, planned, control, self._functions[planned.task.stage], its in self._checked, facts
                )
                self._checked.add(its)
                self._free_since = time.time()
                return code
        except Saved:
            return errors.EXIT_SAVED
        except locks.Busy as busy:
            _say(f"{' '.join(planned.key)}: {busy}; leaving it to that one", sys.stdout)
            return None
        finally:
            progress.close()


def preload(function: str, root: Path, stage: str, which: str) -> None:
    """Load what a task and others like it need, for forks of this process.

    Args:
        function: `module:function` of the stage in `PRELOAD_FUNCTIONS`, whose module has been imported.
        root: the campaign's directory.
        stage: one of `medsyn.stage.STAGES`.
        which: the task's name or index.
    """
    campaign = campaign_file.open_campaign(root)
    task = campaign.plan.find(stage, which).task
    reader = Reader(task, results_of(stage, campaign.config))
    load(function, 1)(campaign.config, task, replace(campaign.directory, reader=reader))  # type: ignore[call-arg]
    gc.collect()
    gc.freeze()  # a collection writes to what it looks at, and what is written to is shared no longer


def follow(stage: str) -> int:
    """Be another than the first process of a launcher: without the task's lock, records and heartbeat.

    Only fine-tuning is shared; for the other stages the first process suffices.
    """
    if stage not in FOLLOW_FUNCTIONS:
        return errors.EXIT_DONE
    control = Control()
    install(control)
    try:
        load(FOLLOW_FUNCTIONS[stage], 1)(control)  # type: ignore[call-arg, arg-type]
    except Saved:
        return errors.EXIT_SAVED
    except (InputError, InputProblems, NoProgress, BadNode) as error:
        _say(str(error), sys.stderr)
        return _exit_code(error, Path())[0]
    return errors.EXIT_DONE


def _already_done(planned: PlannedTask) -> int:
    print(f"{' '.join(planned.key)} is already done")
    if launched() is not None and planned.key[0] in DISMISS_FUNCTIONS:
        load(DISMISS_FUNCTIONS[planned.key[0]], 1)()  # type: ignore[call-arg]
    return errors.EXIT_DONE


def _lock(path: Path, planned: PlannedTask, control: Control, leave: Callable[[locks.Busy], bool] = _wait) -> ExitStack:
    """The task's lock, taken; waits while another process works on the task, or raises Busy to leave it to that one."""
    stack = ExitStack()
    reported = False
    while True:
        control.leave_if_asked()
        try:
            stack.enter_context(locks.exclusive(path))
            return stack
        except locks.Busy as busy:
            if leave(busy):
                raise
            if not reported:
                reported = True
                print(f"{' '.join(planned.key)}: {busy}; waiting for it", flush=True)
            time.sleep(LOCK_POLL_SECONDS)


def _attempt(
    campaign: Campaign,
    planned: PlannedTask,
    control: Control,
    function: str,
    is_checked: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Try the task.

    Args:
        campaign: the prepared campaign.
        planned: the task.
        control: its connection to the outside.
        function: `module:function` of its stage.
        is_checked: this process has checked its inputs, and holds what it has loaded of them.
        facts: to record with its start.
    """
    directory, key = campaign.directory, planned.key
    before = attempts.read_failure(directory, key)
    started = time.time()
    number, account = 0, time_use.open_account()
    try:
        number = attempts.start_attempt(directory, key, **(facts or {}), ready=markers.ready_since(campaign, planned))
        if not is_checked:
            with time_use.of(time_use.LOADING):
                latency = campaign_file.LATENCY_SECONDS if attempts.slurm_job() else 0.0
                _check_inputs(campaign, planned, control, latency)
        with time_use.of(time_use.START_UP):
            run = load(function, campaign.config.device.cpu_threads)
        control.leave_if_asked()
        reader = Reader(planned.task, results_of(planned.task.stage, campaign.config))
        with time_use.of(BOOKED_AS.get(key[0], time_use.OTHER)):
            run(campaign.config, planned.task, replace(directory, reader=reader), control)
        markers.write_done(campaign, planned, {"attempts": number, "seconds": time.time() - started})
        code, reason = errors.EXIT_DONE, "done"
    except KeyboardInterrupt:
        code, reason = errors.EXIT_INTERRUPTED, "interrupted"
    except Saved:
        code, reason = errors.EXIT_SAVED, "saved"
        directory.failed(*key).unlink(missing_ok=True)
    except BaseException as error:  # every other way out of a stage is a failure on record
        code, reason = _fail(error, control, directory, key, before)
    _say(f"{' '.join(key)}: {reason} (exit code {code})", sys.stdout)
    with suppress(OSError):  # a full disk must not hide why the task ended
        attempts.end_attempt(directory, key, number, code, reason, control.asked, account.as_dict())
    time_use.close_account()
    return code


def _check_inputs(campaign: Campaign, planned: PlannedTask, control: Control, latency_seconds: float) -> None:
    """Raise InputError if an input is wrong, and still is after the time a shared file system may need."""
    end = time.monotonic() + latency_seconds
    while True:
        try:
            return markers.check_inputs(campaign, planned)
        except InputError:
            if time.monotonic() > end:
                raise
        control.leave_if_asked()
        time.sleep(LOCK_POLL_SECONDS)


def load(function: str, threads: int) -> StageFunction:
    """Import a stage's function, `module:function`, for a process that computes with so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read once, when torch is imported
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("medsyn").setLevel(logging.INFO)
    module, _, name = function.partition(":")
    if module not in sys.modules:
        gc.disable()  # importing leaves hardly any garbage, and looking for it takes a tenth of the time
        try:
            importlib.import_module(module)
        finally:
            gc.enable()
        gc.freeze()  # what was imported stays; no later collection looks at it again
    run: StageFunction = getattr(sys.modules[module], name)
    return run


def _fail(
    error: BaseException, control: Control, directory: CampaignDirectory, key: Key, before: Mapping[str, Any] | None
) -> tuple[int, str]:
    """Report and record what a stage raised; return the exit code and the reason in one line."""
    code, message = _exit_code(error, directory.root)
    failure: dict[str, Any] = {"error": type(error).__name__, "message": message, "step": control.step}
    if code == errors.EXIT_FAILED:
        text = "".join(traceback.format_exception(error))
        _say(text, sys.stderr)
        failure["traceback"] = text.splitlines()[-TRACEBACK_LINES:]
        if before is not None and attempts.same_place(before, failure):
            code = errors.EXIT_NO_PROGRESS
            _say("this is the second failure at the same place", sys.stderr)
    else:
        _say(message, sys.stderr)
    with suppress(OSError):
        attempts.write_failure(directory, key, {"exit_code": code, **failure})
    return code, f"{type(error).__name__}: {message}".splitlines()[0]


def _say(text: str, stream: TextIO) -> None:
    """Print; the log may be on the disk that is full, which must not change how the task ends."""
    with suppress(OSError):
        print(text, file=stream, flush=True)


def _exit_code(error: BaseException, root: Path) -> tuple[int, str]:
    """The exit code of a failure, and its message; `root` is the campaign's directory."""
    message = str(error)
    if isinstance(error, (InputError, InputProblems)):
        return errors.EXIT_BAD_INPUT, message
    if isinstance(error, NoProgress):
        return errors.EXIT_NO_PROGRESS, message
    if isinstance(error, BadNode):
        return errors.EXIT_BAD_NODE, message
    if any(map(disk.is_full, _causes(error))):
        return errors.EXIT_BAD_NODE, f"{_disk_full(error, root)} ({message})"
    if any(words in message for words in BROKEN_GPU):
        return errors.EXIT_BAD_NODE, f"the GPU of this machine is broken or gone ({message})"
    return errors.EXIT_FAILED, message


def _disk_full(error: BaseException, root: Path) -> str:
    """A message naming the file that found no room, and the free space; the campaign's directory if none is named."""
    causes = [one for one in _causes(error) if isinstance(one, OSError)]
    place = next((Path(one.filename) for one in causes if isinstance(one.filename, str)), root)
    if any(one.errno == errno.EDQUOT for one in causes):  # what is free on the disk is not the user's
        return f"the quota is used up, at {place}: `quota -s` shows it on most machines"
    room = disk.room(place.parent)
    return f"no space left on the disk, or the quota is used up, at {place}" + (f": {room}" if room else "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def install(control: Control) -> None:
    """Turn SIGTERM, SIGUSR2 and the first Ctrl-C into `control.request_stop()`; the second Ctrl-C interrupts.

    Forked children (data loaders) inherit the handlers and ignore the signals: some process trackers of Slurm signal
    every descendant, and a task must not lose its data loader before it has saved.
    """
    main = os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        if os.getpid() != main:
            return
        control.request_stop()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, ask)


def leave_with_parent(parent: int, control: Control) -> None:
    """Have the kernel send SIGTERM when the scheduler with process id `parent` dies, however it dies."""
    if not prctl.signal_at_death_of(parent, signal.SIGTERM):
        control.request_stop()
