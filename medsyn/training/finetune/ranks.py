"""The processes of a task that computes on several GPUs: started, supervised and ended by the task's own.

Not by torchrun or `accelerate launch`: under both, exit code 75 becomes 1, and a signal ends the launcher and leaves
its processes running. The task's process keeps what a task has (lock, signals, heartbeat, exit code) and never touches
CUDA. Its children are the ranks: forks, which cost nothing, where this process can be forked, else new processes. The
kernel kills them with it. Forks share its lock, so the task is not begun again before the last of them is gone.

    rank  -> task    ("beat", arguments of Control.heartbeat)  or, at its end, ("end", what it raised, and the causes)
    task  -> rank    (when it was asked to stop, seconds left or None)
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

import torch.distributed as dist

from medsyn import forks, prctl, time_use
from medsyn.config import Config
from medsyn.errors import CONFIGURATION, InputError
from medsyn.models.visible_gpus import visible_gpus
from medsyn.stage import CampaignDirectory, Control, Saved, Task
from medsyn.text import counted
from medsyn.training.finetune.parallel import Ranks, Team

POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0  # after one has failed, for the others to find out
_STORE = "ranks"

RankFunction: TypeAlias = Callable[[Config, Task, CampaignDirectory, Control, Team], None]


def count(config: Config) -> int:
    """How many ranks the task has here; asks nvidia-smi, not torch, because what touches CUDA cannot be forked.

    Raises:
        InputError: there are fewer GPUs than `finetune.gpus`.
    """
    wanted, use_cuda = config.finetune.gpus, config.device.use_cuda
    if wanted == 1 or (wanted == "auto" and not use_cuda):
        return 1
    there = len(visible_gpus()) if use_cuda else None
    if wanted == "auto":
        return max(1, min(there or 1, config.finetune.global_batch))
    if there is not None and there < wanted:
        seen = counted(there, "GPU") if there else "no GPU"
        reason = f"{wanted} are asked for, and {seen} can be seen here: give the task more, or use auto"
        raise InputError(CONFIGURATION, reason, key="finetune.gpus")
    return wanted


@dataclass
class _Rank:
    """One child of the task's process."""

    number: int
    process: BaseProcess
    channel: Connection
    error: BaseException | None = None
    said: float | None = None  # when it said how it ended
    killed: bool = False  # by us

    def died(self) -> str | None:
        """How it ended without a word, if it did."""
        code = self.process.exitcode
        if code is None or self.said is not None or self.killed:
            return None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"rank {self.number} was {how}" if code < 0 else f"rank {self.number} {how}"


@dataclass
class _Supervisor:
    control: Control
    ranks: list[_Rank] = field(default_factory=list)
    told: bool = False
    failed: float | None = None  # when the first did

    def listen(self) -> None:
        """Take note of what the ranks say, until the last has ended."""
        while any(rank.process.exitcode is None for rank in self.ranks):
            running = [rank for rank in self.ranks if rank.process.exitcode is None]
            wait([one for rank in running for one in (rank.channel, rank.process.sentinel)], POLL_SECONDS)
            for rank in self.ranks:
                self._hear(rank)
            if self.control.stop_requested and not self.told:
                self.told = True
                for rank in running:
                    with suppress(OSError):
                        rank.channel.send((self.control.asked, self.control.seconds_left()))
            if self._is_over():
                self.kill()
        for rank in self.ranks:
            self._hear(rank)

    def _hear(self, rank: _Rank) -> None:
        with suppress(EOFError, OSError):
            while rank.channel.poll():
                kind, *words = rank.channel.recv()
                if rank.number == 0 and (account := time_use.current()) is not None:
                    account.told = words[-1] or account.told
                if kind == "beat":
                    self.control.heartbeat(*words[0], **words[1])
                else:
                    rank.error, rank.said = _chained(words[0]), time.monotonic()

    def _is_over(self) -> bool:
        """Whether nothing can come of the others: the first has ended, or another failed and the first had time to see.

        One that has left because it was asked to has not failed: the first may still be writing.
        """
        if self.ranks[0].process.exitcode is not None:
            return True
        fine = (rank.died() is None and isinstance(rank.error, Saved | None) for rank in self.ranks)
        if all(fine):
            return False
        self.failed = self.failed or time.monotonic()
        return time.monotonic() - self.failed > GRACE_SECONDS

    def kill(self) -> None:
        """End those that are left."""
        for rank in self.ranks:
            if rank.process.exitcode is None:
                rank.killed = True
                rank.process.kill()
                rank.process.join()

    def outcome(self) -> BaseException | None:
        """What the task ends with: what the first rank says if it got through, else what failed first."""
        first = self.ranks[0]
        if first.said is not None and (first.error is None or isinstance(first.error, Saved)):
            return first.error
        dead = [words for rank in self.ranks if (words := rank.died())]
        if dead:
            return RuntimeError(f"{'; '.join(dead)}: the others were ended, the task goes on from its last checkpoint")
        told = sorted((rank.said, rank.number, rank.error) for rank in self.ranks if rank.said and rank.error)
        return told[0][2] if told else RuntimeError("the ranks ended without a word")


def run(
    function: RankFunction, size: int, config: Config, task: Task, directory: CampaignDirectory, control: Control
) -> None:
    """Run `function` in `size` processes; returns, or raises what the task ends with.

    Raises:
        Saved: a stop was requested; everything made so far is on disk.
        RuntimeError: a rank was killed.
        Exception: what a rank raised.
    """
    context: Any = multiprocessing.get_context("fork" if forks.unfit() is None else "spawn")
    supervisor = _Supervisor(control)
    if (account := time_use.current()) is not None:
        account.ranks = size
    with tempfile.TemporaryDirectory(prefix="medsyn-") as folder:
        store = str(Path(folder) / _STORE)
        try:
            for number in range(size):
                ours, theirs = context.Pipe()
                words = (function, config, task, directory, number, size, store, theirs, os.getpid())
                process = context.Process(target=_become_rank, args=words, name=f"rank {number}", daemon=True)
                process.start()
                theirs.close()
                supervisor.ranks.append(_Rank(number, process, ours))
            with time_use.of(time_use.RANKS):
                supervisor.listen()
        finally:
            supervisor.kill()
            for rank in supervisor.ranks:
                rank.channel.close()
    if (error := supervisor.outcome()) is not None:
        raise error


class RankControl(Control):
    """A rank's connection to the task's process, which has the heartbeat, the progress and the signals."""

    def __init__(self, number: int, channel: Connection) -> None:
        super().__init__()
        self._leads, self._channel = number == 0, channel

    def heartbeat(self, *arguments: Any, **numbers: Any) -> None:
        """Have the task's process report it."""
        if self._leads:
            self._channel.send(("beat", arguments, numbers, _used()))
        self.asked_here()

    def asked_here(self) -> bool:
        """Whether the task's process has said that it is time to leave."""
        if self.asked is None and self._channel.poll():
            self.asked, left = self._channel.recv()
            self._grace_seconds = None if left is None else time.time() - (self.asked or 0) + left
            self.request_stop()
        return self.asked is not None

    def leave_if_asked(self) -> None:
        """Raise `Saved` if a stop was requested."""
        self.asked_here()
        super().leave_if_asked()


def _become_rank(
    function: RankFunction,
    config: Config,
    task: Task,
    directory: CampaignDirectory,
    number: int,
    size: int,
    store: str,
    channel: Connection,
    parent: int,
) -> None:
    """Be a rank, in a process of its own, until it ends."""
    for one in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):  # Slurm signals all processes: the task's tells us
        signal.signal(one, signal.SIG_IGN)
    if not prctl.signal_at_death_of(parent, signal.SIGKILL):
        os._exit(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the others are on this machine; its name may mean nothing
    time_use.open_account()
    error: BaseException | None = None
    try:
        team = Ranks(number, size, dist.FileStore(store, size))
        function(config, task, directory, RankControl(number, channel), team)
    except BaseException as raised:
        error = raised
    channel.send(("end", _portable(error), _used()))
    os._exit(0)  # not through what the task's process would do at its end; nor may CUDA's end hang


def _used() -> dict[str, Any] | None:
    account = time_use.current()
    return account.as_dict() if account else None


def _portable(error: BaseException | None) -> Sequence[BaseException]:
    """What was raised and its causes, as they can be sent; where it was raised is a note to the first."""
    chain: list[BaseException] = []
    while error is not None and len(chain) < 5:
        if not chain:
            error.add_note("".join(traceback.format_exception(error)))
        chain.append(_sendable(error))
        error = error.__cause__ or error.__context__
    return chain


def _sendable(error: BaseException) -> BaseException:
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
        return copy if str(copy) == str(error) else RuntimeError(str(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _chained(errors: Sequence[BaseException]) -> BaseException | None:
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0] if errors else None
