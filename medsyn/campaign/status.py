"""Where a campaign stands, from its own files: for `launch.py status` and for the end of a local run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medsyn import errors
from medsyn.campaign import ledger, locks, records
from medsyn.campaign.plan import Key, Settled, settle
from medsyn.campaign.records import Campaign

COLUMNS = ("done", "running", "failed", "blocked", "waiting")
LOG_LINES = 5


@dataclass(frozen=True)
class Status:
    """Every task's state, and which tasks some process works on now."""

    campaign: Campaign
    settled: Settled
    running: frozenset[Key] = frozenset()

    def state(self, key: Key) -> str:
        """One of `COLUMNS`: a task that is ready counts as waiting until somebody takes it."""
        if key in self.running:
            return "running"
        state = self.settled.states[key]
        return "waiting" if state == "ready" else state

    def counts(self, stage: str) -> Counter[str]:
        """How many tasks of the stage are in each state."""
        return Counter(self.state(planned.key) for planned in self.campaign.plan.by_stage[stage])

    def in_state(self, state: str) -> list[Key]:
        """The tasks in a state, in the plan's order."""
        return [planned.key for planned in self.campaign.plan if self.state(planned.key) == state]

    @property
    def exit_code(self) -> int:
        """EXIT_DONE if all is done, EXIT_FAILED if something failed, EXIT_SAVED while there is more to come."""
        if self.in_state("failed"):
            return errors.EXIT_FAILED
        return errors.EXIT_SAVED if self.in_state("running") or self.in_state("waiting") else errors.EXIT_DONE

    def as_dict(self) -> dict[str, Any]:
        """The status for scripts."""
        directory = self.campaign.directory
        return {
            "campaign": self.campaign.config.campaign.name,
            "directory": str(directory.root),
            "report": str(directory.report) if directory.report.is_file() else None,
            "stages": {
                stage: {column: self.counts(stage)[column] for column in COLUMNS}
                for stage in self.campaign.plan.by_stage
            },
            "running": [
                _named(key) | {"progress": records.progress(directory, key)} for key in self.in_state("running")
            ],
            "failed": [
                _named(key) | {"failure": records.read_failure(directory, key)} for key in self.in_state("failed")
            ],
            "blocked": [
                _named(key) | {"by": [_named(root) for root in self.settled.blocked_by[key]]}
                for key in self.in_state("blocked")
            ],
        }


def _named(key: Key) -> dict[str, Any]:
    return {"stage": key[0], "task": key[1]}


def read(campaign: Campaign) -> Status:
    """Where the campaign stands according to its files; outputs are not looked at."""
    directory, plan = campaign.directory, campaign.plan
    done = {planned.key for planned in plan if records.done_marker(campaign, planned) is not None}
    open_keys = [planned.key for planned in plan if planned.key not in done]
    running = frozenset(key for key in open_keys if locks.is_held(directory.attempts(*key)))
    failed = {key for key in open_keys if key not in running and directory.failed(*key).is_file()}
    return Status(campaign, settle(plan, done, failed), running)


def show(console: Console, status: Status, command: str) -> None:
    """Print the table of stages, why tasks failed or are blocked, where everything is, and what to type next."""
    directory = status.campaign.directory
    say = partial(console.print, soft_wrap=True, highlight=False)
    console.print(_table(status))
    for key in status.in_state("running"):
        beat = records.progress(directory, key)
        say(f"{' '.join(key)} running", f"{beat['step']}/{beat['total']} {beat['unit']}" if beat else "")
    for key in status.in_state("failed"):
        failure = records.read_failure(directory, key) or {}
        message = str(failure.get("message") or "").splitlines()
        why = ": ".join(part for part in (failure.get("error"), message[0] if message else None) if part)
        say(f"[red]{' '.join(key)} failed[/] {escape(why)}")
        log = directory.log(*key)
        for line in records.last_lines(log, LOG_LINES):
            say(f"    {escape(line)}", style="dim")
        if log.is_file():
            say(f"    log: {escape(str(log))}")
    for stage in status.campaign.plan.by_stage:
        blocked = [key for key in status.in_state("blocked") if key[0] == stage]
        if blocked:
            names = ", ".join(name for _, name in blocked[:4]) + (
                f" and {len(blocked) - 4} more" if blocked[4:] else ""
            )
            causes = dict.fromkeys(" ".join(root) for key in blocked for root in status.settled.blocked_by[key])
            say(f"[yellow]{stage} {names}[/] blocked by {', '.join(causes)}")
    say(f"campaign  {escape(str(directory.root))}")
    if directory.report.is_file():
        say(f"report    {escape(str(directory.report))}")
    if status.in_state("failed"):
        say(f"next      when the cause is gone: {escape(command)}")
    elif status.in_state("waiting") and not status.running:
        say(f"next      to go on: {escape(command)}")


def _table(status: Status) -> Table:
    table = Table("stage", title=f"campaign {status.campaign.config.campaign.name}", title_justify="left")
    for column in (*COLUMNS, "wall time"):
        table.add_column(column, justify="right")
    seconds = ledger.stage_seconds(status.campaign.directory.ledger)
    for stage in status.campaign.plan.by_stage:
        counts = status.counts(stage)
        wall = duration(seconds[stage]) if stage in seconds else ""
        table.add_row(stage, *(str(counts[column] or "") for column in COLUMNS), wall)
    return table


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3:20, 2:03:20."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
