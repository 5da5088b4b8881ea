"""Leases: which task is at work on a block, so that no two paint the same one.

A lease is a file beside its block that only one task can create. Its holder renews the file's time; a lease that is
not renewed has expired, and another task may take it over. Whether it is renewed each task judges by its own clock
alone, for the clocks of nodes differ. Leases save work and prove nothing: what a block holds does not depend on who
makes it, and it is committed by one rename, so a lease that fails costs time and no image.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from medsyn import disk

LEASE_BEAT_SECONDS = 20.0
LEASE_SECONDS = 120.0  # more than a beat and the 60 s for which an NFS client may show an old time


class LeaseLost(Exception):
    """Another task took the lease over: this one seemed dead, because it was suspended or cut off for a while."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease; what its file says."""

    task: str
    host: str
    pid: int
    token: str  # of this one lease; no two have the same


@dataclass(frozen=True)
class _Seen:
    """A lease as it was at one moment. Its holder is None while the file is being written."""

    renewed: int  # the file's time in nanoseconds, by whatever clock
    holder: Holder | None


def lease_file(block: Path) -> Path:
    """Where a block's lease is; hidden, so that readers of blocks pass it by."""
    return block.with_name(f".{block.name}.lease")


class Leases:
    """The leases of one task, renewed by a thread while the `with` block lasts, and given back when it ends.

    Args:
        task: the task's name. Its worker sees to it that one process at a time runs the task, so that a lease of this
            name which this process does not hold is left of an earlier attempt.
        seconds: after how long without renewal a lease has expired.
        beat_seconds: how often leases are renewed.
    """

    def __init__(self, task: str, seconds: float | None = None, beat_seconds: float | None = None) -> None:
        self.task = task
        self._seconds = LEASE_SECONDS if seconds is None else seconds
        self._beat_seconds = LEASE_BEAT_SECONDS if beat_seconds is None else beat_seconds
        self._held: dict[Path, Holder] = {}
        self._lock = threading.Lock()  # the writing thread gives back what the painting thread has taken
        self._observed: dict[Path, tuple[_Seen, float]] = {}
        self._over = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="leases", daemon=True)

    def take(self, block: Path) -> bool:
        """Try to become the holder of a block's lease; whether this call did it."""
        path = lease_file(block)
        with self._lock:
            if path in self._held:
                return False
        disk.make_directory(path.parent)
        if self._create(path):
            return True
        seen = _look(path)
        return seen is not None and self._is_dead(path, seen) and _remove(path, seen) and self._create(path)

    def require(self, block: Path) -> None:
        """Raise LeaseLost if the block's lease was taken over since `take`."""
        with self._lock:
            if lease_file(block) not in self._held:
                raise LeaseLost(str(block))

    def give_back(self, block: Path) -> None:
        """End the lease of a block, if this task still holds it."""
        path = lease_file(block)
        with self._lock:
            holder = self._held.pop(path, None)
        if holder is not None and _holder(path) == holder:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Leases:
        self._renewal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._renewal.join()
        for path, holder in self._held.items():
            with suppress(OSError):
                if _holder(path) == holder:
                    path.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        # O_EXCL is atomic on NFS (since version 3), Lustre, GPFS and BeeGFS; locks are not to be had everywhere
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, disk.FILE_MODE)
        except FileExistsError:
            return False
        holder = Holder(self.task, _host(), os.getpid(), secrets.token_hex(8))
        try:
            with os.fdopen(descriptor, "w") as stream:
                json.dump(asdict(holder), stream)
        except BaseException:  # a full disk
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._held[path] = holder
        self._observed.pop(path, None)
        return True

    def _is_dead(self, path: Path, seen: _Seen) -> bool:
        holder = seen.holder
        if holder is not None:
            if holder.task == self.task:
                return True
            if holder.host == _host() and not disk.is_running(holder.pid):
                return True
        before, since = self._observed.get(path, (None, 0.0))
        if before != seen:
            self._observed[path] = seen, time.monotonic()
            return False
        return time.monotonic() - since > self._seconds

    def _renew(self) -> None:
        while not self._over.wait(self._beat_seconds):
            with self._lock:
                held = list(self._held.items())
            for path, holder in held:
                with suppress(OSError):  # a file system that does not answer now may do so at the next beat
                    if self._is_ours(path, holder):
                        os.utime(path)

    def _is_ours(self, path: Path, holder: Holder) -> bool:
        """Whether the file is this lease; one that has been taken over is forgotten."""
        ours = _holder(path) == holder
        if not ours:
            with self._lock:
                if self._held.get(path) == holder:
                    del self._held[path]
        return ours


def _look(path: Path) -> _Seen | None:
    """The lease as it is now, None if it is gone. A file is opened, because on NFS that asks the server."""
    try:
        with path.open("rb") as stream:
            renewed, content = os.fstat(stream.fileno()).st_mtime_ns, stream.read()
    except FileNotFoundError:
        return None
    try:
        return _Seen(renewed, Holder(**json.loads(content)))
    except (ValueError, TypeError):
        return _Seen(renewed, None)


def _holder(path: Path) -> Holder | None:
    seen = _look(path)
    return seen.holder if seen else None


def _remove(path: Path, dead: _Seen) -> bool:
    """Take a dead lease away, which one of all who try it succeeds in; whether it was this process."""
    grave = disk.temporary_sibling(path.with_name(path.name.removeprefix(".")))
    try:
        with path.open("r+b") as stream:
            with suppress(OSError):  # no locks here: the rename decides
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
            if _look(path) != dead:  # another process was faster
                return False
            path.rename(grave)
            if _look(grave) == dead:
                return True
            with suppress(OSError):
                os.link(grave, path)  # it is a new lease, made between the look and the rename
            return False
    except FileNotFoundError:
        return False
    finally:
        grave.unlink(missing_ok=True)


def _host() -> str:
    """The name of this host and, for containers, of the space in which its process ids count."""
    return f"{os.uname().nodename} {Path('/proc/self/ns/pid').stat().st_ino}"
