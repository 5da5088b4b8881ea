"""The process whose forks run tasks: it has imported what they need, and does nothing else.

It has one thread and no CUDA when it forks, which it checks: neither threads nor CUDA survive a fork. A fork is what
`python -m MODULE ARGUMENTS` would be, in a session of its own, and the child of whoever started the server: the
process between the two ends at once, and the kernel gives the orphan to the next relative that adopts orphans
(`prctl.adopt_orphans`). So its end, its exit code and its parent's death are what they are for any child, and
the server may die.

Requests and replies are JSON, one packet each, on the socket whose descriptor is the first argument; the second is the
server's parent, the third is how many threads a task computes with:

    {"import": "module:function"}                                 ->  {"unfit": null, or why it cannot be forked}
    {"load": ["module:function", campaign, stage, task]}          ->  the same; forks then have what such tasks load
    {"module": "...", "arguments": [...], "environment": {...}}   ->  {"process": id}     with the log's descriptor
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medsyn import prctl
from medsyn.campaign import worker
from medsyn.forks import unfit

PACKET_BYTES = 2**17
# pyarrow loads an allocator that it does not use, and that starts a thread unless told not to.
_WITHOUT_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}


def main(descriptor: int, parent: int, threads: int) -> None:
    """Serve until the other end of the socket is closed; returns, or ends as a task's process does, in a fork."""
    if not prctl.signal_at_death_of(parent, signal.SIGKILL):
        return
    channel = socket.socket(fileno=descriptor)
    while True:
        packet, logs, _, _ = socket.recv_fds(channel, PACKET_BYTES, 1)
        if not packet:
            return
        request = json.loads(packet)
        if "import" in request:
            reply: dict[str, Any] = {"unfit": _prepare(request["import"], threads)}
        elif "load" in request:
            reply = {"unfit": _load(*request["load"])}
        else:
            process = _fork()
            if process is None:
                channel.close()
                return _become(request, *logs)
            reply = {"process": process}
        for log in logs:
            os.close(log)
        channel.send(json.dumps(reply).encode())


def _prepare(function: str, threads: int) -> str | None:
    """Import what a stage needs; return why this process cannot be forked, or None."""
    with _environment(_WITHOUT_THREADS):
        try:
            worker.load(function, threads)
            for module in getattr(sys.modules[function.partition(":")[0]], "IMPORTED_LATE", ()):
                importlib.import_module(module)
        except Exception as error:  # the task's own process meets it as well, and tells
            return f"{type(error).__name__}: {error}"
    if (torch := sys.modules.get("torch")) is not None:
        getattr(torch.cuda.device_count, "cache_clear", lambda: None)()  # a task may see fewer GPUs
    return unfit()


def _load(function: str, root: str, stage: str, which: str) -> str | None:
    """Load what a task needs, if it can be loaded; return why this process cannot be forked, or None."""
    with suppress(Exception):  # the task's own process meets it as well, and tells
        worker.preload(function, Path(root), stage, which)
    return unfit()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that are set meanwhile, unless the user has set them."""
    added = values.keys() - os.environ.keys()
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _fork() -> int | None:
    """Fork a grandchild and wait until it is the scheduler's child; return its id, or None in the grandchild."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        between = os.getpid()
        try:
            process = os.fork()
        except OSError:
            os._exit(1)
        if process > 0:
            os.write(theirs, str(process).encode())
            os._exit(0)
        os.close(ours)
        os.close(theirs)
        while os.getppid() == between:
            time.sleep(0.0005)
        return None
    os.close(theirs)
    process = int(os.read(ours, 32))
    os.close(ours)
    os.waitpid(child, 0)
    return process


def _become(request: dict[str, Any], log: int) -> None:
    """Go on as `python -m MODULE ARGUMENTS` would that was started with this log and environment."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.update(request["environment"])
    sys.argv = ["-m", *request["arguments"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        _leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    _leave(0)


def _leave(code: int) -> None:
    """End as Python does, but do not take the modules apart: that takes half a second, and copies what is shared."""
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing's forks end: waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
