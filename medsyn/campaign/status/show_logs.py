"""`medsyn logs`: what tasks printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medsyn import errors
from medsyn.campaign.status import logs
from medsyn.campaign.status.state import ACTIVE, Status
from medsyn.campaign.tasks import Key

EXCERPT = 10  # lines of a failed task's log
POLL_SECONDS = 0.5
STATE_SECONDS = 5.0  # between two looks at whether the task has ended


def failures(console: Console, status: Status) -> None:
    """Print the last lines of every failed task's log."""
    failed = status.by_state["failed"]
    for key in failed:
        console.print(Text(f"{' '.join(key)} failed: {status.why(key)}", "red"), soft_wrap=True)
        path = status.log(key)
        for line in logs.last_lines(path, EXCERPT) if path else []:
            console.print(Text(f"    {line}"), soft_wrap=True)
        console.print(Text(f"    log: {path}" if path else "    it has no log"), soft_wrap=True)
    if not failed:
        console.print("no task has failed; name a stage, or STAGE:TASK, to see what it prints", soft_wrap=True)


def overview(console: Console, status: Status, keys: Sequence[Key]) -> None:
    """Print a table of tasks: state, log and its last line."""
    table = Table("task", "state", "log", "last line", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for key in keys:
        path = status.log(key)
        line = next(iter(logs.last_lines(path, 1)), "") if path else ""
        shown = path.relative_to(status.campaign.directory.root) if path else ""
        table.add_row(key[1], status.states[key], Text(str(shown), overflow="fold"), Text(line, overflow="ellipsis"))
    console.print(f"logs are in {status.campaign.directory.root}", soft_wrap=True, highlight=False)
    console.print(table)


def show(status: Status, key: Key, lines: int | None, follow: Callable[[], Status] | None = None) -> int:
    """Print the end of a task's log, and follow it until the task ends.

    Args:
        status: where the campaign stands.
        key: the task.
        lines: how many of the last lines; None for all.
        follow: how to find out where the campaign stands later; None prints what there is and leaves.

    Returns:
        EXIT_DONE; when following, EXIT_FAILED if the task has failed and EXIT_SAVED if it is not done.
    """
    path = status.log(key)
    position = _print(path, lines) if path else 0
    if follow is None:
        if path is None:
            print(f"{' '.join(key)} is {status.states[key]} and has no log yet", file=sys.stderr)
        return errors.EXIT_DONE
    if path is None:
        print(f"{' '.join(key)} is {status.states[key]}; waiting for its log", file=sys.stderr)
    watched = _Watched(status, key, follow)
    where = lambda: status.log(key)  # noqa: E731
    for text in logs.follow(where, watched.is_over, lambda: time.sleep(POLL_SECONDS), position):
        print(text, end="", flush=True)
    state = watched.status.states[key]
    print(f"{' '.join(key)} is {state}", file=sys.stderr)
    if state == "done":
        return errors.EXIT_DONE
    return errors.EXIT_FAILED if state == "failed" else errors.EXIT_SAVED


def _print(path: Path, lines: int | None) -> int:
    """Print the last lines, or all, of a file as it is now; return its size."""
    size = path.stat().st_size
    if lines is not None:
        for line in logs.tail(path, lines, size):
            print(line)
    else:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                print(line, end="")
    return size


class _Watched:
    """A task's state, looked at every few seconds."""

    def __init__(self, status: Status, key: Key, read: Callable[[], Status]) -> None:
        self.status = status
        self._key = key
        self._read = read
        self._looked = time.monotonic()

    def is_over(self) -> bool:
        """Whether the task will print nothing more by itself."""
        if time.monotonic() - self._looked >= STATE_SECONDS:
            self._looked = time.monotonic()
            self.status = self._read()
        return self.status.states[self._key] not in ACTIVE
