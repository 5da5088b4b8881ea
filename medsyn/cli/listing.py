"""medsyn list: the campaigns below a folder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medsyn import disk
from medsyn.campaign.status import overview
from medsyn.campaign.status.overview import Overview
from medsyn.cli import app
from medsyn.errors import EXIT_DONE, Problem

DEFAULT = "runs"  # where campaigns are unless they say otherwise


def main(program: str, arguments: Sequence[str]) -> int:
    """List the campaigns in and below a folder: state, tasks, last change, directory."""
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    text = f"where to look ({DEFAULT}); a campaign's own directory is not looked into"
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, default=[], help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)

    folders = args.folders or [folder for folder in [Path(DEFAULT)] if folder.is_dir()]
    problems: list[Problem] = []
    found = overview.read(folders, problems.append)
    if args.json:
        print(json.dumps([_as_dict(one) for one in found], indent=2))
    elif found:
        Console().print(_table(found))
    else:
        print(f"no campaigns below {', '.join(map(str, args.folders or [DEFAULT]))}")
    app.show_problems(problems)
    return EXIT_DONE


def _as_dict(one: Overview) -> dict[str, object]:
    return {
        "campaign": one.name or None,
        "directory": str(disk.absolute(str(one.directory))),
        "state": one.state,
        "tasks": {"all": one.tasks, "done": one.done, "failed": one.failed, "queued": one.queued},
        "changed": one.time,
        "problem": one.problem,
    }


def _table(found: Sequence[Overview]) -> Table:
    table = Table("campaign", "state", "tasks", "changed", "directory", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time)) if one.time is not None else ""
        table.add_row(one.name, one.state, _tasks(one), when, Text(str(one.directory), overflow="fold"))
    return table


def _tasks(one: Overview) -> str:
    if not one.tasks:
        return ""
    said = [f"{one.done} of {one.tasks} done"]
    said += [f"{number} {what}" for number, what in ((one.failed, "failed"), (one.queued, "in the queue")) if number]
    return ", ".join(said)
