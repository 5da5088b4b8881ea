"""What a task's attempts file says: how often it was tried, what it took, and whether the newest try has an end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsyn import disk


@dataclass(frozen=True)
class Attempts:
    """A task's tries so far."""

    begun: int = 0
    seconds: float = 0.0  # of those that are over; a killed one counts up to its last heartbeat
    open_since: float | None = None  # when the newest began, if it has no end on record
    jobs: tuple[str | None, ...] = ()  # Slurm's id of the job that each was part of
    host: str = ""  # where the newest ran, as Slurm calls it if that is known
    reason: str | None = None  # how the newest ended, in one line

    @property
    def job(self) -> str | None:
        """Slurm's id of the job that the newest was part of."""
        return self.jobs[-1] if self.jobs else None

    @property
    def is_open(self) -> bool:
        """Whether the newest attempt runs, or was killed."""
        return self.open_since is not None

    def spent(self, until: float | None) -> float:
        """Seconds of all attempts, the open one counted to `until` (now, or its last heartbeat)."""
        if self.open_since is None or until is None:
            return self.seconds
        return self.seconds + max(0.0, until - self.open_since)


NONE = Attempts()


def read(path: Path) -> Attempts:
    """The attempts in a task's file; NONE if there is no such file."""
    return summarize(disk.read_jsonl(path))


def summarize(lines: Iterable[Mapping[str, Any]]) -> Attempts:
    """The attempts that the lines of an attempts file record; damaged lines are passed over."""
    seconds = 0.0
    jobs: list[str | None] = []
    since: float | None = None
    newest: Mapping[str, Any] = {}
    reason: str | None = None
    for line in lines:
        time = line.get("time")
        if not isinstance(time, (int, float)):
            continue
        if line.get("event") == "start":
            beat = line.get("progress") or {}  # of the attempt before, which may have been killed
            if since is not None:
                seconds += max(0.0, beat.get("time", since) - since)
            jobs.append(line.get("job"))
            since, newest, reason = float(time), line, None
        elif since is not None:
            seconds += max(0.0, time - since)
            since, reason = None, line.get("reason")
    return Attempts(len(jobs), seconds, since, tuple(jobs), newest.get("node") or newest.get("host", ""), reason)
