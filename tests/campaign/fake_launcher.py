"""`launch.py submit` of a prepared campaign, with workers that run the fake stages."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from medsyn import cli
from medsyn.campaign import local, locks, records
from medsyn.campaign.display import Display

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def submit(program: str, arguments: list[str]) -> int:
    campaign = records.open_campaign(Path(arguments[0]))
    with locks.exclusive(campaign.directory.ledger):
        return local.run(campaign, Display(campaign, Console(width=200), "submit again"), int(arguments[1]), WORKER)


if __name__ == "__main__":
    sys.exit(cli.dispatch("launcher", {"submit": ("", submit)}, ["submit", *sys.argv[1:]]))
