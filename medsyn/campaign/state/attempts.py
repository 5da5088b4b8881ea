"""A task's attempts: how often it was tried, how long that took, how the newest ended, and its heartbeat."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.campaign.tasks import Key
from medsyn.stage import CampaignDirectory


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
    """The attempts that the lines of an attempts file record; damaged lines are skipped."""
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
            heartbeat = line.get("progress") or {}  # of the attempt before, which may have been killed
            if since is not None:
                seconds += max(0.0, heartbeat.get("time", since) - since)
            jobs.append(line.get("job"))
            since, newest, reason = float(time), line, None
        elif since is not None:
            seconds += max(0.0, time - since)
            since, reason = None, line.get("reason")
    return Attempts(len(jobs), seconds, since, tuple(jobs), newest.get("node") or newest.get("host", ""), reason)


def progress(directory: CampaignDirectory, key: Key) -> dict[str, Any] | None:
    """The task's newest heartbeat."""
    try:
        heartbeat: dict[str, Any] = disk.read_json(directory.heartbeat(*key))
    except (OSError, ValueError):
        return None
    return heartbeat


def in_words(heartbeat: Mapping[str, Any]) -> str:
    """How far a task is, as `5/20 step`, and in which of several rounds."""
    its = f"round {heartbeat['round']} of {heartbeat['rounds']}, " if heartbeat.get("rounds", 1) > 1 else ""
    return f"{its}{heartbeat['step']}/{heartbeat['total']} {heartbeat['unit']}"


def start_attempt(directory: CampaignDirectory, key: Key, **facts: Any) -> int:
    """Record that an attempt starts, where, and further facts; return its number, counted from 1."""
    path = directory.attempts(*key)
    number = 1 + sum(1 for line in disk.read_jsonl(path) if line["event"] == "start")
    disk.append_jsonl(path, _attempt("start", number, progress=progress(directory, key), **facts))
    directory.heartbeat(*key).unlink(missing_ok=True)  # from here on a heartbeat is this attempt's
    return number


def end_attempt(
    directory: CampaignDirectory,
    key: Key,
    number: int,
    exit_code: int,
    reason: str,
    asked: float | None = None,
    use: Mapping[str, Any] | None = None,
) -> None:
    """Record how the attempt ended, when it was asked to leave, if it was, and what its seconds went to."""
    facts = {"exit_code": exit_code, "reason": reason, "progress": progress(directory, key)}
    if use is not None:
        facts["use"] = use
    if asked is not None:
        facts["asked"] = asked
    disk.append_jsonl(directory.attempts(*key), _attempt("end", number, **facts))


def attempt_lines(directory: CampaignDirectory, key: Key) -> list[dict[str, Any]]:
    """Every start and end of the task on record, oldest first."""
    return list(disk.read_jsonl(directory.attempts(*key)))


def _attempt(event: str, number: int, **facts: Any) -> dict[str, Any]:
    who: dict[str, Any] = {"time": time.time(), "host": os.uname().nodename, "pid": os.getpid()}
    if job := slurm_job():
        who |= {"job": job, "node": os.environ.get("SLURMD_NODENAME", "")}
    return {"event": event, "attempt": number, **who, **facts}


def slurm_job() -> str | None:
    """Slurm's id of the job this process runs in: 123, or 123_4 for an element of an array; None outside of Slurm."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array else os.environ.get("SLURM_JOB_ID")


def write_failure(directory: CampaignDirectory, key: Key, failure: Mapping[str, Any]) -> None:
    """Record why the task failed."""
    disk.write_json(directory.failed(*key), {"time": time.time(), "host": os.uname().nodename, **failure})


def read_failure(directory: CampaignDirectory, key: Key) -> dict[str, Any] | None:
    """Why the task failed when it was last tried, or None."""
    try:
        failure: dict[str, Any] = disk.read_json(directory.failed(*key))
    except (OSError, ValueError):
        return None
    return failure


def same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two failures are the same exception at the same step; addresses and numbers in the text may differ."""

    def place(failure: Mapping[str, Any]) -> tuple[Any, ...]:
        message = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", str(failure.get("message")))
        return failure.get("error"), message, failure.get("step")

    return place(one) == place(other)
