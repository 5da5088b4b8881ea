"""Locks for file systems that have none (Lustre without -o flock, some NFS): a file that one process can create.

The holder renews it; one that has not been renewed for a while belongs to a dead process and is taken over. Ages are
differences between two times that the file server gave, so that no machine's clock matters.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medsyn.disk import FILE_MODE, temporary_sibling

RENEW_SECONDS = 20.0
STALE_SECONDS = 120.0


@contextmanager
def held(path: Path, stale_seconds: float = STALE_SECONDS, renew_seconds: float = RENEW_SECONDS) -> Iterator[bool]:
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


def is_held(path: Path, stale_seconds: float = STALE_SECONDS) -> bool:
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
