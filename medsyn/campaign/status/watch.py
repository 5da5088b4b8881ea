"""`status --watch`: the status again and again, until nothing more will happen by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress

from rich.console import Console, Group
from rich.live import Live

from medsyn.campaign.status import show
from medsyn.campaign.status.status import Status


def watch(
    console: Console,
    read: Callable[[], Status],
    command: show.Command,
    seconds: float,
    expected: Mapping[str, float] | None = None,
) -> int:
    """Show the status every so many seconds; without a terminal print a line whenever a count changes.

    Leaves when nothing is at work or in the queue, or on Ctrl-C, with the exit code of the status.
    """
    status = read()
    said = ""
    live = Live(console=console, auto_refresh=False, screen=False) if console.is_terminal else None
    with suppress(KeyboardInterrupt), live or nullcontext():
        while True:
            if live:
                live.update(Group(*show.parts(status, command, expected)), refresh=True)
            elif (line := show.in_one_line(status)) != said:
                said = line
                console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True, highlight=False)
            if not status.is_active:
                break
            time.sleep(seconds)
            status = read()
    if live is None:
        show.show(console, status, command, expected)
    return status.exit_code
