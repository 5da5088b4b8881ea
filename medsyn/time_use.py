"""What a task's seconds go to: one account a process, every second of it in one kind.

`of` says what follows; the innermost one counts. Only the thread that opened the account books in it: what another
thread does meanwhile costs nothing unless somebody waits for it. Where no account is open, booking does nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_UP, LOADING, PAINTING, TRAINING = "start_up", "loading", "painting", "training"
RANKS = "ranks"  # what the processes of its ranks tell, in as_dict
SCORING, WRITING, WAITING, EVALUATING, OTHER = "scoring", "writing", "waiting", "evaluation", "other"
MADE = (PAINTING, TRAINING, SCORING)  # what a kill may undo
JOB_START_VARIABLE = "SLURM_JOB_START_TIME"  # in seconds since the epoch; releases before 23.02 do not set it


class Account:
    """The seconds of one attempt of a task, by kind, and the places of batches that were painted and used."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.ranks = 1  # processes with a GPU each that train together
        self.told: dict[str, Any] = {}  # the newest account of the first of them, where that is another process
        self.counts: Counter[str] = Counter()
        self.kept = 0.0  # seconds of what is made and on disk
        self._seconds: dict[str, float] = defaultdict(float)
        self._kind, self._since = OTHER, time.perf_counter()

    def turn_to(self, kind: str) -> str:
        """Book what follows as `kind`; return what it was booked as before."""
        now, before = time.perf_counter(), self._kind
        self._seconds[before] += now - self._since
        self._kind, self._since = kind, now
        return before

    @property
    def made(self) -> float:
        """Seconds spent on what a kill may undo."""
        self.turn_to(self._kind)
        return sum(self._seconds[kind] for kind in MADE)

    def as_dict(self) -> dict[str, Any]:
        """For the records: seconds by kind, those of what is made and not on disk, places painted and used."""
        unsaved, booked = max(0.0, self.made - self.kept), self._seconds.copy()
        if self.told:
            rest = booked.pop(RANKS, 0.0) - sum(self.told["seconds"].values())
            for kind, amount in (self.told["seconds"] | {OTHER: max(0.0, rest)}).items():
                booked[kind] += amount
            unsaved = self.told["unsaved"]
        seconds = {kind: round(amount, 3) for kind, amount in booked.items() if amount >= 5e-4}
        ranks = {"ranks": self.ranks} if self.ranks > 1 else {}
        return {"seconds": seconds, "unsaved": round(unsaved, 3), **self.counts, **ranks}


_open: Account | None = None


def open_account() -> Account:
    """Begin a new account for this process, kept by this thread."""
    global _open
    _open = Account()
    return _open


def close_account() -> None:
    """Book no further."""
    global _open
    _open = None


def current() -> Account | None:
    """The account that this thread keeps, if there is one."""
    return _open if _open is not None and _open.thread == threading.get_ident() else None


@contextmanager
def of(kind: str) -> Iterator[None]:
    """Book the seconds of a `with` block, or of the calls of a function that this decorates, as `kind`."""
    account = current()
    if account is None:
        yield
        return
    before = account.turn_to(kind)
    try:
        yield
    finally:
        account.turn_to(before)


def count(**amounts: int) -> None:
    """Add to the account's counts."""
    if (account := current()) is not None:
        account.counts.update(amounts)


def mark() -> Callable[[], None]:
    """What has been made until now: call the result, from any thread, as soon as it is on disk."""
    account = current()
    if account is None:
        return lambda: None
    made = account.made

    def kept() -> None:
        account.kept = max(account.kept, made)

    return kept


def allocated_since() -> float:
    """Since when this process has had its place, in seconds since the epoch: its job's start, or its own."""
    if (said := os.environ.get(JOB_START_VARIABLE, "")).isdigit():
        return float(said)
    with suppress(OSError, ValueError, IndexError, AttributeError):  # not Linux
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - max(0.0, age)
    return time.time()
