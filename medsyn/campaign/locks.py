"""One process at a time: advisory locks that vanish with the process that holds them.

Any file can carry the lock, so the records themselves do: a task's attempts file, the campaign's ledger. The newest
record in it says who the holder is. On a file system without locks a lock file beside the record stands in.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medsyn.campaign import lock_files
from medsyn.disk import FILE_MODE, make_directory, read_jsonl

# Lustre mounted without -o flock, and some NFS
_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_TRIES, _TRY_SECONDS = 3, 0.02


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
            with lock_files.held(_lock_file(path)) as ours:
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
        return lock_files.is_held(_lock_file(path))
    finally:
        os.close(descriptor)
    return False


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
