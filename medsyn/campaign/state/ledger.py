"""What happened in a campaign, one line per event, append-only: submitted, started, ended.

The launcher's diary, for people and for `status`; never consulted to decide whether a task is done.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from medsyn import disk

SUBMITTED, STARTED, ENDED, CANCELLED = "submitted", "started", "ended", "cancelled"


def record(path: Path, event: str, **facts: Any) -> None:
    """Append one event with the time, the launcher's host and process id."""
    disk.append_jsonl(
        path, {"event": event, "time": time.time(), "host": os.uname().nodename, "pid": os.getpid(), **facts}
    )


def stage_seconds(path: Path) -> dict[str, float]:
    """Seconds during which at least one task of each stage was running, over all submissions.

    A run whose launcher was killed has no end on record and is left out.
    """
    intervals: dict[str, list[tuple[float, float]]] = {}
    started: dict[tuple[str, str], float] = {}
    for event in disk.read_jsonl(path):
        key = (event.get("stage", ""), event.get("task", ""))
        if event["event"] == STARTED:
            started[key] = event["time"]
        elif event["event"] == ENDED and key in started:
            intervals.setdefault(key[0], []).append((started.pop(key), event["time"]))
    return {stage: _covered(spans) for stage, spans in intervals.items()}


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
