"""What happened in a campaign, one line per event, append-only: submitted, started, ended.

It says what was queued and whose the process at work is; whether a task is done its marker says alone.
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
