"""The processes of tasks: forks of one that has imported what they need or, where that cannot be, new ones.

Either way a task's process is a child of this one, in a session of its own, that runs
`python -m MODULE ARGUMENTS CAMPAIGN STAGE TASK --parent PID`, and its results are the same.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from medsyn import prctl
from medsyn.campaign import worker
from medsyn.campaign.local import fork_server

FORK_VARIABLE = "MEDSYN_FORK"  # 0: start a new process for every task
FORK_SECONDS = 60.0  # a fork takes milliseconds; a server that does not answer for so long never will


@dataclass(frozen=True)
class Program:
    """What runs a task: a module that is run with these arguments, then the campaign's directory, stage and task."""

    module: str = "medsyn"
    arguments: tuple[str, ...] = ("worker",)
    functions: Mapping[str, str] = field(default_factory=lambda: worker.STAGE_FUNCTIONS)  # of each stage
    preloads: Mapping[str, str] = field(default_factory=dict)  # of the stages that have one


WORKER = Program(preloads=worker.PRELOAD_FUNCTIONS)


class Process(Protocol):
    """A task's process."""

    @property
    def pid(self) -> int:
        """Its id."""

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""


class Fork:
    """A fork of the server, which is a child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""
        if self._code is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self._code = os.waitstatus_to_exitcode(ended[1])
        return self._code

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class Lost(Exception):
    """There is no fork server, or there is no more; the message says why."""


class ForkServer:
    """The process that has imported what tasks need, seen from this one."""

    def __init__(self, threads: int) -> None:
        """Start it; it waits for the first request.

        Args:
            threads: how many a task computes with.

        Raises:
            OSError: this system cannot.
        """
        self._prepared: set[str] = set()
        self._preparing: str | None = None
        prctl.adopt_orphans(True)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = (theirs.fileno(), os.getpid(), threads)
            self._process = subprocess.Popen(
                [sys.executable, "-m", fork_server.__name__, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def is_ready(self, *requests: Mapping[str, Any]) -> bool:
        """Whether it has done these requests, and can be forked; the first calls have it do them, and do not wait.

        Args:
            requests: to import and to load, in this order.

        Raises:
            Lost: it cannot be forked, or the server has ended.
        """
        if self._preparing is not None:
            if not select.select([self._channel], [], [], 0)[0]:
                return False
            if reason := self._receive()["unfit"]:
                raise Lost(reason)
            self._prepared.add(self._preparing)
            self._preparing = None
        for request in requests:
            if (name := json.dumps(request)) not in self._prepared:
                self._send(request)
                self._preparing = name
                return False
        return True

    def fork(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: int) -> Fork:
        """Fork it: the child is `python -m MODULE ARGUMENTS` with further variables and its output in `log`.

        Raises:
            Lost: the server has ended.
        """
        self._send({"module": module, "arguments": list(arguments), "environment": dict(environment)}, log)
        return Fork(self._receive()["process"])

    def _send(self, request: Mapping[str, Any], *descriptors: int) -> None:
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
        except OSError as error:
            raise Lost(f"it has ended ({error.strerror})") from error

    def _receive(self) -> Any:
        self._channel.settimeout(FORK_SECONDS)
        try:
            packet = self._channel.recv(fork_server.PACKET_BYTES)
        except OSError as error:
            raise Lost(f"it does not answer ({error})") from error
        if not packet:
            raise Lost("it has ended")
        return json.loads(packet)

    def close(self) -> None:
        """End it; what it has forked runs on."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        prctl.adopt_orphans(False)


class Processes:
    """Starts the processes of tasks. Use it in a `with` statement."""

    def __init__(self, program: Program, say: Callable[[str], None], threads: int, tasks: int) -> None:
        """Start the process that is forked, if there is to be one.

        Args:
            program: what runs a task.
            say: told if tasks are no longer forked, and why.
            threads: how many a task computes with.
            tasks: how many there are to run; for one alone nothing is gained.
        """
        self._program = program
        self._say = say
        self._server: ForkServer | None = None
        if tasks > 1 and _can_fork():
            with suppress(OSError):  # an old kernel, or a sandbox
                self._server = ForkServer(threads)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def is_ready(self, stage: str, like: Sequence[str] = ()) -> bool:
        """Whether a task of a stage can be started now; if not, ask again.

        Args:
            stage: its stage.
            like: campaign directory, stage and name of a task that loads the same, if that is worth loading once.
        """
        if self._server is None:
            return True
        requests: list[Mapping[str, Any]] = [{"import": self._program.functions[stage]}]
        if like and stage in self._program.preloads:
            requests.append({"load": [self._program.preloads[stage], *like]})
        try:
            return self._server.is_ready(*requests)
        except Lost as lost:
            self._give_up(lost)
            return True

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: int) -> Process:
        """Start a task's process.

        Args:
            arguments: campaign directory, stage and task.
            environment: variables that it has beyond this process's.
            log: descriptor of the file its output goes to.
        """
        program = self._program
        arguments = [*program.arguments, *arguments, "--parent", str(os.getpid())]
        if self._server is not None:
            try:
                return self._server.fork(program.module, arguments, environment, log)
            except Lost as lost:
                self._give_up(lost)
        return subprocess.Popen(
            [sys.executable, "-m", program.module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )

    def _give_up(self, reason: Lost) -> None:
        self._say(f"every further task imports torch itself: the process that had done so cannot be forked: {reason}")
        self._close()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def _can_fork() -> bool:
    """Whether forks are wanted, and ends of children are reported: not where SIGCHLD is ignored."""
    return os.environ.get(FORK_VARIABLE) != "0" and signal.getsignal(signal.SIGCHLD) != signal.SIG_IGN
