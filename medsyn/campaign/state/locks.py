"""One process at a time: advisory locks that vanish with the process that holds them.

Any file can carry the lock, so the records themselves do: a task's attempts file, the campaign's ledger. The newest
record in it says who the holder is. On a file system without locks a lock file beside the record stands in.

Locks for file systems that have none (Lustre without -o flock, some NFS): a file that one process can create.

The holder renews it; one that has not been renewed for a while belongs to a dead process and is taken over. Ages are
differences between two times that the file server gave, so that no machine's clock matters.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medsyn.disk import FILE_MODE, make_directory, read_jsonl, temporary_sibling

# Lustre mounted without -o flock, and some NFS
_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_TRIES, _TRY_SECONDS = 3, 0.02

RENEW_SECONDS = 20.0
STALE_SECONDS = 120.0


class Busy(Exception):
    """Another process holds the lock; the message says which."""

    def __init__(self, path: Path, of: str | Path) -> None:
        newest = deque(read_jsonl(path), maxlen=1)
        who = f" ({newest[0].get('host')}, process {newest[0].get('pid')})" if newest else ""
        super().__init__(f"another process{who} is at work on {of}")


@contextmanager
def exclusive(path: Path, of: str | Path = "it") -> Iterator[None]:
    """Hold the lock on `path`, creating the file if need be; raises `Busy` at once if somebody else holds it.

    `of` is what the lock protects, as the message names it.
    """
    make_directory(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        try:
            _take(descriptor)
        except BlockingIOError:
            raise Busy(path, of) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
            with _held_lock_file(_lock_file(path)) as ours:
                if not ours:
                    raise Busy(path, of) from None
                yield
            return
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> None:
    """Lock; whoever only asks whether a lock is held (`is_held`) has it for an instant, which is waited out."""
    for _ in range(_TRIES - 1):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_TRY_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock on `path` at this moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return _lock_file_is_held(_lock_file(path))
    finally:
        os.close(descriptor)
    return False


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


@contextmanager
def _held_lock_file(
    path: Path, stale_seconds: float = STALE_SECONDS, renew_seconds: float = RENEW_SECONDS
) -> Iterator[bool]:
    """Try to hold the lock file `path`; yields whether this process holds it."""
    if _is_stale(path, stale_seconds):
        path.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except FileExistsError:
        yield False
        return
    with os.fdopen(descriptor, "w") as stream:
        json.dump({"host": os.uname().nodename, "pid": os.getpid()}, stream)
    over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, over, renew_seconds), daemon=True)
    renewal.start()
    try:
        yield True
    finally:
        over.set()
        renewal.join()
        path.unlink(missing_ok=True)


def _lock_file_is_held(path: Path, stale_seconds: float = STALE_SECONDS) -> bool:
    """Whether some living process holds the lock file."""
    return path.exists() and not _is_stale(path, stale_seconds)


def _renew(path: Path, over: threading.Event, seconds: float) -> None:
    while not over.wait(seconds):
        with suppress(OSError):
            path.touch(exist_ok=True)


def _is_stale(path: Path, seconds: float) -> bool:
    try:
        renewed = path.stat().st_mtime
        holder: dict[str, Any] = json.loads(path.read_text() or "{}")
    except (OSError, ValueError):
        return False  # gone meanwhile, or being written
    if holder.get("host") == os.uname().nodename and not Path(f"/proc/{holder.get('pid')}").exists():
        return True
    return _now(path) - renewed > seconds


def _now(beside: Path) -> float:
    """The file server's time."""
    probe = temporary_sibling(beside)
    try:
        probe.touch(mode=FILE_MODE)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
