"""`medsyn submit` of a prepared campaign, with workers that run the fake stages."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from medsyn.campaign.local import scheduler
from medsyn.campaign.local.live_table import Display
from medsyn.campaign.local.processes import Program
from medsyn.campaign.state import campaign_file, locks
from medsyn.cli import app
from tests.helpers.fake_stages import FUNCTIONS

PROGRAM = Program("tests.helpers.fake_worker", functions=FUNCTIONS, arguments=())


def submit(program: str, arguments: list[str]) -> int:
    campaign = campaign_file.open_campaign(Path(arguments[0]))
    with locks.exclusive(campaign.directory.ledger):
        return scheduler.run(
            campaign, Display(campaign, Console(width=200), "submit again"), int(arguments[1]), PROGRAM
        )


if __name__ == "__main__":
    sys.exit(app.dispatch("launcher", {"submit": app.Command("", submit)}, ["submit", *sys.argv[1:]]))
