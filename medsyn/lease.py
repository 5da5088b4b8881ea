"""Leases: which process works on something, even where the file system has no locks.

A lease is a file that only one process can create. Its holder renews the file's time; a lease that is not renewed has
expired, and another process may take it over. Each process judges expiry by its own clock alone, because the clocks of
nodes differ. A lease is no proof of exclusive access: a holder that was suspended may work beside its successor until
its next heartbeat.

Why not filelock's SoftFileLease: it replaces a dead holder's file only by exchanging two names in one step, which NFS,
Lustre and BeeGFS refuse, so there the file would block for ever; so would, on every file system, an empty file left by
a process that was killed before it wrote.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from medsyn import disk

HEARTBEAT_SECONDS = 20.0
LEASE_SECONDS = 120.0  # more than a heartbeat and the 60 s for which an NFS client may show an old time


class LeaseLost(Exception):
    """Another process took over the lease: this one seemed dead, because it was suspended or cut off for a while."""


class Seen(NamedTuple):
    """A lease as it was at one moment."""

    renewed: int  # the file's time in nanoseconds, by any clock
    content: bytes  # unique to each lease; incomplete while the file is being written

    @property
    def holder(self) -> dict[str, Any]:
        """The holder: task, host, pid, token; {} while the file is incomplete."""
        try:
            holder = json.loads(self.content)
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) and holder.keys() >= {"task", "host", "pid"} else {}


def lease_file(path: Path) -> Path:
    """Where the lease on `path` is; hidden, so that readers of blocks ignore it."""
    return path.with_name(f".{path.name}.lease")


class Leases:
    """The leases of one task, renewed by a thread during the `with` block and released at its end.

    Args:
        task: the task's name, if something else ensures that one process at a time runs the task: a lease of this
            name that this process does not hold is then left over from an earlier attempt, and taken over at once.
    """

    def __init__(self, task: str | None = None) -> None:
        self.task = task
        self._held: dict[Path, bytes] = {}  # the content of the files
        self._lock = threading.Lock()  # the writing thread gives back what the sampling thread has taken
        self._observed: dict[Path, tuple[Seen, float]] = {}
        self._over = threading.Event()

    def file(self, path: Path) -> Path:
        """Where the lease on `path` is."""
        return lease_file(path)

    def has_expired(self, file: Path, seen: Seen) -> bool:
        """Whether this task has seen the lease unchanged for more than `LEASE_SECONDS`."""
        before, since = self._observed.get(file, (None, 0.0))
        if before != seen:
            self._observed[file] = seen, time.monotonic()
            return False
        return time.monotonic() - since > LEASE_SECONDS

    def take(self, path: Path) -> bool:
        """Try to take the lease on `path`; whether this call took it."""
        file = self.file(path)
        with self._lock:
            if file in self._held:
                return False
        disk.make_directory(file.parent)
        if self._create(file):
            return True
        seen = _look(file)
        return seen is not None and self._is_dead(file, seen) and self._take_over(file, seen)

    def is_held(self, path: Path) -> bool:
        """Whether a process that is not known to be dead holds the lease on `path`."""
        file = self.file(path)
        seen = _look(file)
        return seen is not None and not self._is_dead(file, seen)

    def require(self, path: Path) -> None:
        """Raise LeaseLost if the lease on `path` was taken over since `take`."""
        with self._lock:
            if self.file(path) not in self._held:
                raise LeaseLost(str(path))

    def give_back(self, path: Path) -> None:
        """Release the lease on `path`, if this task still holds it."""
        self._end(self.file(path))

    def __enter__(self) -> Leases:
        self._heartbeat = threading.Thread(target=self._renew, name="leases", daemon=True)
        self._heartbeat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._heartbeat.join()
        for file in list(self._held):
            with suppress(OSError):
                self._end(file)

    def _create(self, file: Path) -> bool:
        # O_EXCL is atomic on NFS (since version 3), Lustre, GPFS and BeeGFS
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, disk.FILE_MODE)
        except FileExistsError:
            return False
        holder = {"task": self.task, "host": _host(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        content = json.dumps(holder).encode()
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
        except BaseException:  # a full disk
            file.unlink(missing_ok=True)
            raise
        with self._lock:
            self._held[file] = content
        self._observed.pop(file, None)
        return True

    def _take_over(self, file: Path, dead: Seen) -> bool:
        """Replace a dead lease by one of this task; the guard file admits one process at a time."""
        guard = file.with_name(f".{file.name.removeprefix('.')}.tmp-takeover")
        if not self._create(guard):
            seen = _look(guard)
            if seen is None or not self._is_dead(guard, seen):
                return False
            guard.unlink(missing_ok=True)  # its creator was killed
            return self._take_over(file, dead)
        try:
            if _look(file) != dead:  # another process was faster
                return False
            file.unlink(missing_ok=True)
            return self._create(file)
        finally:
            self._end(guard)

    def _end(self, file: Path) -> None:
        with self._lock:
            content = self._held.pop(file, None)
        if content is not None and _says(file, content):
            file.unlink(missing_ok=True)

    def _is_dead(self, file: Path, seen: Seen) -> bool:
        if holder := seen.holder:
            if self.task is not None and holder["task"] == self.task:
                return True
            if holder["host"] == _host() and not disk.is_running(holder["pid"]):
                return True
        return self.has_expired(file, seen)

    def _renew(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with self._lock:
                held = list(self._held.items())
            for file, content in held:
                with suppress(OSError):  # a file system that does not answer now may answer at the next heartbeat
                    if _says(file, content):
                        os.utime(file)
                        continue
                    with self._lock:
                        if self._held.get(file) == content:
                            del self._held[file]


def _look(file: Path) -> Seen | None:
    """The lease as it is now, None if it is gone. The file is opened, because on NFS that asks the server."""
    try:
        with file.open("rb") as stream:
            return Seen(os.fstat(stream.fileno()).st_mtime_ns, stream.read())
    except FileNotFoundError:
        return None


def _says(file: Path, content: bytes) -> bool:
    seen = _look(file)
    return seen is not None and seen.content == content


def _host() -> str:
    """The name of this host and, for containers, the number of its pid namespace."""
    return f"{os.uname().nodename} {Path('/proc/self/ns/pid').stat().st_ino}"
