"""How far a task is, for people: plain lines in a log, or a bar where the output is a terminal.

Nothing here changes a result or a record, and nothing here can end a task: a full disk below the log is met, and
reported, by whatever writes results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from medsyn.text import duration

LINE_SECONDS = 30.0
BAR_SECONDS = 0.2


class Progress:
    """The progress of one process. Rates and the time left are of what this process has done, not one before it."""

    def __init__(self, stream: TextIO | None = None, line_seconds: float = LINE_SECONDS) -> None:
        self._stream = stream or sys.stdout
        self._bar = _Bar() if self._stream.isatty() else None
        self._seconds = BAR_SECONDS if self._bar else line_seconds
        self._unit: tuple[str, int] | None = None  # what is counted now, and to where
        self._begun = 0.0  # when the first report of it came
        self._begun_with = 0  # how much was done by then
        self._said = 0.0
        self._step = -1  # of the newest line

    def report(
        self,
        step: int,
        total: int,
        unit: str,
        numbers: Mapping[str, Any],
        worked: int | None = None,
        samples: int = 1,
        now: bool = False,
    ) -> None:
        """Say how far the task is, if it is time to.

        Args:
            step: how many units are done.
            total: of how many.
            unit: what is counted.
            numbers: further values to show.
            worked: how many of them this process has done, from wherever it counts; None: units take unequal times.
            samples: of each unit; above 1 the rate is that of samples.
            now: say it whatever the time, unless it has been said.
        """
        clock = time.monotonic()
        first = self._unit != (unit, total)
        if first:
            self._unit, self._begun, self._begun_with, self._step = (unit, total), clock, worked or 0, -1
        due = first or now or step >= total or clock - self._said >= self._seconds
        if not due or (step == self._step and clock - self._said < self._seconds):
            return
        self._said, self._step = clock, step
        facts = [words for name, value in numbers.items() if (words := _words(name, value))]
        if worked is not None and worked > self._begun_with and clock > self._begun:
            speed = (worked - self._begun_with) / (clock - self._begun)
            facts.append(f"{speed * samples:.3g} {'samples' if samples > 1 else f'{unit}s'}/s")
            if step < total:
                facts.append(f"{duration((total - step) / speed)} left")
        if self._bar:
            self._bar.show(step, total, unit, ", ".join(facts))
        else:
            self._say(f"{unit} {step} of {total}" + (f": {', '.join(facts)}" if facts else ""))

    def _say(self, line: str) -> None:
        with suppress(OSError, ValueError):  # a full disk; a closed stream
            print(f"{time.strftime('%H:%M:%S')} {line}", file=self._stream, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.close()


def _words(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{name.replace('_', ' ')} {shown}"


class _Bar:
    """A bar at the bottom of the terminal, without a thread of its own."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.fields[unit]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
        )
        self._bars = Progress(*columns, transient=True, auto_refresh=False)
        self._bars.start()
        self._task = self._bars.add_task("", unit="", total=None)

    def show(self, step: int, total: int, unit: str, facts: str) -> None:
        self._bars.update(self._task, completed=step, total=total, unit=unit, description=facts, refresh=True)

    def close(self) -> None:
        self._bars.stop()
