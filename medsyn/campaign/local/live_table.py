"""What a local run shows while it runs: one live table on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Collection
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from medsyn.campaign.state import attempts
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.status import read
from medsyn.campaign.status.as_text import show
from medsyn.campaign.tasks import Key, Settled
from medsyn.text import duration

LIVE_SECONDS = 0.25
PLAIN_SECONDS = 30.0
BAR_WIDTH = 32


class Display:
    """Progress of a campaign on a console. Without a terminal it prints a line when something happens."""

    def __init__(
        self, campaign: Campaign, console: Console, command: str, then: tuple[Collection[Key], str] | None = None
    ) -> None:
        """`command` is what the user types to run this again; `then`: once those tasks are done, to run the rest."""
        self._campaign = campaign
        self._console = console
        self._command = command
        self._then = then
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = 0.0
        self._since: dict[Key, float] = {}

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(Text(""), refresh=True)  # the summary says it all again
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line, above the live table if there is one."""
        self._console.print(escape(text), soft_wrap=True, highlight=False)

    def started(self, key: Key) -> None:
        """A worker has been started."""
        self._since[key] = time.monotonic()
        if self._live is None:
            self.say(f"{' '.join(key)}: started")

    def ended(self, key: Key, how: str) -> None:
        """A worker has ended. A terminal shows what is done by its bars."""
        if self._live is None or how != "done":
            self.say(f"{' '.join(key)}: {how} after {duration(self._elapsed(key))}")

    def show(self, settled: Settled, running: Collection[Key]) -> None:
        """Refresh the display, if it is time to."""
        now = time.monotonic()
        if now - self._shown < (LIVE_SECONDS if self._live else PLAIN_SECONDS):
            return
        self._shown = now
        if self._live:
            self._live.update(Group(self._stages(settled, running), self._tasks(running)), refresh=True)
            return
        for key in running:
            if self._elapsed(key) >= PLAIN_SECONDS:
                self.say(f"{' '.join(key)}: {self._progress(key)[2]}")

    def nothing_to_do(self) -> None:
        """Everything was done before."""
        self.say("everything is done; nothing to do")
        directory = self._campaign.directory
        self.say(f"campaign  {directory.root}")
        self.say(f"report    {directory.report}")

    def summary(self, settled: Settled) -> None:
        """Show the final status of a run."""
        chosen, rest = self._then or ((), self._command)
        is_over = all(settled.states[key] == "done" for key in chosen)
        command = rest if is_over else self._command
        show(self._console, read.of_settled(self._campaign, settled), lambda name: command)

    def _elapsed(self, key: Key) -> float:
        return time.monotonic() - self._since[key]

    def _progress(self, key: Key) -> tuple[float, float | None, str]:
        """How far a running task is: step, total (None before its first heartbeat) and both in words."""
        heartbeat = attempts.progress(self._campaign.directory, key)
        elapsed = duration(self._elapsed(key))
        if heartbeat is None:
            return 0, None, f"starting, {elapsed}"
        words = f"{attempts.in_words(heartbeat)}, {elapsed}"
        return heartbeat["step"], heartbeat["total"], words

    def _stages(self, settled: Settled, running: Collection[Key]) -> Table:
        grid = Table.grid(padding=(0, 1))
        for stage, tasks in self._campaign.plan.by_stage.items():
            done = settled.count(stage, "done")
            notes = {
                "running": sum(key[0] == stage for key in running),
                "failed": settled.count(stage, "failed"),
                "blocked": settled.count(stage, "blocked"),
            }
            note = ", ".join(f"{number} {what}" for what, number in notes.items() if number)
            bar = ProgressBar(total=len(tasks), completed=done, width=BAR_WIDTH)
            grid.add_row(Text(stage, style="bold"), bar, f"{done}/{len(tasks)}", note)
        return grid

    def _tasks(self, running: Collection[Key]) -> Table:
        grid = Table.grid(padding=(0, 1))
        for key in running:
            step, total, words = self._progress(key)
            bar = ProgressBar(total=total, completed=step, width=BAR_WIDTH, pulse=total is None)
            grid.add_row(f"  {' '.join(key)}", bar, words)
        return grid
