"""The status for people: a table of stages, what was generated, what went wrong, and what to type next.

`status --watch`: the status again and again, until nothing more will happen by itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from medsyn.campaign.plan import machine
from medsyn.campaign.state import gate
from medsyn.campaign.status import figures, logs
from medsyn.campaign.status.state import STATES, State, Status
from medsyn.campaign.tasks import Key
from medsyn.efficiency import KINDS
from medsyn.text import and_more, duration

LOG_LINES = 5
SHOWN = 5  # tasks of a stage that are shown one by one
ALWAYS: tuple[State, ...] = ("done", "running", "pending")  # other columns are shown if they are not empty

CommandLine = Callable[[str], str]  # what the user types for a command


def show(console: Console, status: Status, command: CommandLine, expected: Mapping[str, float] | None = None) -> None:
    """Print everything; arguments as for `parts`."""
    for part in parts(status, command, expected):
        console.print(part, soft_wrap=not isinstance(part, Table), highlight=False)


def parts(
    status: Status, command: CommandLine, expected: Mapping[str, float] | None = None
) -> Iterator[RenderableType]:
    """What is shown, top to bottom.

    Args:
        status: what was found.
        command: what the user types for a command.
        expected: the cost model's seconds of whole stages.
    """
    directory, step = status.campaign.directory, status.next_step
    yield _stages(status, expected)
    yield from _images(status)
    yield from _efficiency(status)
    yield from (_line(f"[yellow]{escape(note)}[/]") for note in status.notes)
    for stage in status.campaign.plan.by_stage:
        yield from _tasks(status, stage, "running", "green")
        yield from _waiting(status, stage)
        yield from _failed(status, stage)
        yield from _blocked(status, stage)
    if status.needs_ratings:
        yield _line("[yellow]needs ratings[/] of its own images (campaign.gate); evaluate waits for them:")
        yield from (_line(f"    {escape(line)}") for line in gate.commands(directory))
    yield _line(f"campaign  {escape(str(directory.root))}")
    if directory.report.is_file():
        yield _line(f"report    {escape(str(directory.report))}")
    if step.command:
        yield _line(f"next      {step.why}: {escape(command(step.command))}")


def in_one_line(status: Status) -> str:
    """How many tasks are in each state: `12 done, 3 running, 1 failed`."""
    return ", ".join(f"{len(keys)} {state}" for state, keys in status.by_state.items() if keys)


def _line(markup: str) -> Text:
    return Text.from_markup(markup)


def _stages(status: Status, expected: Mapping[str, float] | None) -> Table:
    its = figures.stages(status, expected)
    on_gpu = status.campaign.config.device.use_cuda and (status.on_slurm or bool(machine.visible_gpus()))
    spent = "GPU time" if on_gpu else "task time"
    shown = [state for state in STATES if state in ALWAYS or status.by_state[state]]
    times = [spent, *(["expected"] if expected else []), *(["left"] if any(one.left for one in its.values()) else [])]
    title = f"campaign {status.campaign.config.campaign.name}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for column in (*shown, *times):
        table.add_column(column, justify="right", no_wrap=True)
    for name, stage in its.items():
        seconds = {spent: stage.spent, "expected": stage.expected, "left": stage.left}
        said = (_hours(amount) if (amount := seconds[column]) else "" for column in times)
        table.add_row(name, *(str(stage.counts[state] or "") for state in shown), *said)
    return table


def _hours(seconds: float) -> str:
    return duration(seconds) if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _images(status: Status) -> Iterator[Text]:
    images = figures.images(status)
    width = max(map(len, images), default=0)
    for mode, its in images.items():
        if its.candidates:
            rate = f", {its.candidates / its.accepted:.2f} per accepted image" if its.accepted else ""
            strange = f", {its.unfamiliar} unfamiliar to the Selector" if its.unfamiliar else ""
            accepted = f"{its.accepted} of {its.asked} images accepted, {its.candidates} attempts"
            yield _line(f"{mode:<{width}} {accepted}{rate}{strange}")


def _efficiency(status: Status) -> Iterator[Text]:
    """Where the seconds went, the largest parts first."""
    its = figures.efficiency(status)
    if its.allocated:
        shares = sorted(its.whole_percents.items(), key=lambda pair: -pair[1])
        said = ", ".join(f"{KINDS[kind]} {share} %" for kind, share in shares if share)
        queued = f"; {duration(its.queued)} in the queue besides" if its.queued >= 0.5 else ""
        yield _line(f"spent     {_hours(its.allocated)}: {said}{queued}")


def _tasks(status: Status, stage: str, state: State, style: str) -> Iterator[Text]:
    keys = _of(status, stage, state)
    for key in keys[:SHOWN]:
        yield _line(f"[{style}]{' '.join(key)} {state}[/] {escape(status.why(key))}")
    if keys[SHOWN:]:
        yield _line(f"{stage}: {len(keys) - SHOWN} more {state}")


def _of(status: Status, stage: str, state: State) -> list[Key]:
    return [key for key in status.by_state[state] if key[0] == stage]


def _waiting(status: Status, stage: str) -> Iterator[Text]:
    """Why tasks wait in the queue, counted."""
    for state in ("preempted", "pending"):
        reasons = Counter(status.why(key) for key in _of(status, stage, state))
        for reason, count in reasons.most_common(SHOWN):
            if reason:
                yield _line(f"{stage} {count} {state}: {escape(reason)}")


def _failed(status: Status, stage: str) -> Iterator[Text]:
    keys = _of(status, stage, "failed")
    for key in keys[:SHOWN]:
        yield _line(f"[red]{' '.join(key)} failed[/] {escape(status.why(key))}")
        path = status.log(key)
        if path is None:
            continue
        for line in logs.last_lines(path, LOG_LINES):
            yield _line(f"    [dim]{escape(line)}[/]")
        yield _line(f"    log: {escape(str(path))}")
    if keys[SHOWN:]:
        yield _line(f"[red]{stage}: {len(keys) - SHOWN} more failed[/]")


def _blocked(status: Status, stage: str) -> Iterator[Text]:
    reasons: dict[str, list[str]] = {}
    for key in _of(status, stage, "blocked"):
        reasons.setdefault(status.why(key), []).append(key[1])
    for reason, names in reasons.items():
        yield _line(f"[yellow]{stage} {and_more(names, SHOWN)}[/] blocked {escape(reason)}")


def watch(
    console: Console,
    read: Callable[[], Status],
    command: CommandLine,
    seconds: float,
    expected: Mapping[str, float] | None = None,
) -> int:
    """Show the status every `seconds`; without a terminal print a line whenever a count changes.

    Returns the status's exit code when nothing is running or in the queue, or on Ctrl-C.
    """
    status = read()
    said = ""
    live = Live(console=console, auto_refresh=False, screen=False) if console.is_terminal else None
    with suppress(KeyboardInterrupt), live or nullcontext():
        while True:
            if live:
                live.update(Group(*parts(status, command, expected)), refresh=True)
            elif (line := in_one_line(status)) != said:
                said = line
                console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True, highlight=False)
            if not status.is_active:
                break
            time.sleep(seconds)
            status = read()
    if live is None:
        show(console, status, command, expected)
    return status.exit_code
