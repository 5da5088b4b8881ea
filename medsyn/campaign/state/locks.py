"""One process at a time: advisory locks that vanish with the process that holds them.

Any file can carry the lock, so the records themselves do: a task's attempts file, the campaign's ledger. The newest
record in it says who the holder is. On a file system without locks, a lease (a file beside the record) stands in.

Why not filelock's FileLock: it makes the same system call, has no shared lock for those who only look, and takes 0.2 s
to import.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from medsyn import lease
from medsyn.disk import FILE_MODE, make_directory, read_jsonl, temporary_sibling

# Lustre mounted without -o flock, and some NFS
_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_TRIES, _TRY_SECONDS = 3, 0.02


class Busy(Exception):
    """Another process holds the lock; the message says which."""

    def __init__(self, path: Path, of: str | Path) -> None:
        newest = deque(read_jsonl(path), maxlen=1)
        who = f" ({newest[0]['host']}, process {newest[0]['pid']})" if newest and "pid" in newest[0] else ""
        super().__init__(f"another process{who} is at work on {of}")


@contextmanager
def exclusive(path: Path, of: str | Path = "it") -> Iterator[None]:
    """Hold the lock on `path`, creating the file if needed; raises `Busy` at once if another process holds it.

    `of` is what the lock protects, as the message names it.
    """
    make_directory(path.parent)
    with ExitStack() as held:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        held.callback(os.close, descriptor)
        try:
            is_ours = _lock(descriptor)
        except OSError as error:
            _require_no_locks(error)
            is_ours = held.enter_context(_LockFiles()).take(path)
        if not is_ours:
            raise Busy(path, of)
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on `path` right now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        _require_no_locks(error)
        return _LockFiles().is_held(path)
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int) -> bool:
    """Lock; `is_held` takes the lock for an instant to test it, which is waited out."""
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_TRY_SECONDS)
    return False


def _require_no_locks(error: OSError) -> None:
    if error.errno not in _NO_LOCKS_HERE:
        raise error


class _LockFiles(lease.Leases):
    """Leases in place of locks, whose age is judged by one look: a command asks once and ends.

    Ages are differences between two times that the file server gave, so that no machine's clock matters.
    """

    def file(self, path: Path) -> Path:
        return path.with_name(f"{path.name}.lock")

    def has_expired(self, file: Path, seen: lease.Seen) -> bool:
        return _now(file) - seen.renewed > lease.LEASE_SECONDS * 1e9


def _now(beside: Path) -> int:
    """The file server's time in nanoseconds; this machine's if the directory is not writable."""
    probe = temporary_sibling(beside)
    try:
        probe.touch(mode=FILE_MODE)
        return probe.stat().st_mtime_ns
    except OSError:
        return time.time_ns()
    finally:
        with suppress(OSError):
            probe.unlink()
