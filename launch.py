"""The command people use: plan, submit and watch a campaign.

    python launch.py plan|submit|status CONFIG [key=value ...]

Only argument parsing; everything else is in `medsyn.campaign`. Answers in well under a second: no torch here.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from medsyn import cli
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError


def plan(program: str, arguments: Sequence[str]) -> int:
    """Print what a campaign would run, and everything that is wrong with its inputs; write nothing."""
    parser = cli.config_parser(program, "Show stages, tasks and shards, and check every input; nothing is written.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args(arguments)

    from rich.console import Console

    from medsyn import config
    from medsyn.campaign import outline, prepare

    with cli.progress_bars() as progress:
        checked = prepare.check(config.load(args.config, args.overrides), progress)
    if args.json:
        print(json.dumps(outline.as_dict(checked), indent=2))
    else:
        outline.show(Console(), checked)
        cli.show_problems(checked.problems)
    return EXIT_BAD_INPUT if checked.errors else EXIT_DONE


def submit(program: str, arguments: Sequence[str]) -> int:
    """Run, or go on with, everything of a campaign that is not done."""
    parser = cli.config_parser(program, "Run everything of a campaign that is not done, or go on with it.")
    _add_cluster(parser)
    parser.add_argument("--max-parallel", type=_positive, metavar="N", help="tasks at once (cluster.max_parallel)")
    args = parser.parse_intermixed_args(arguments)
    if args.cluster == "slurm":
        raise InputError("--cluster slurm", "comes with the next release; --cluster local runs it on this machine")

    from rich.console import Console

    from medsyn.campaign import local, locks
    from medsyn.campaign.display import Display

    campaign = cli.prepare(args.config, args.overrides)
    with locks.exclusive(campaign.directory.ledger, campaign.directory.root):
        return local.run(campaign, Display(campaign, Console(), _command("submit", arguments)), args.max_parallel)


def status(program: str, arguments: Sequence[str]) -> int:
    """Show where a campaign stands. Exit code: 0 all done, 1 something failed, 75 there is more to come."""
    parser = cli.config_parser(program, str(status.__doc__))
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args(arguments)

    from rich.console import Console

    from medsyn import config
    from medsyn.campaign import records
    from medsyn.campaign import status as campaign_status

    found = campaign_status.read(records.open_campaign(config.load(args.config, args.overrides).campaign.path))
    if args.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        command = _command("submit", [args.config, *args.overrides])
        campaign_status.show(Console(), found, command)
    return found.exit_code


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    default = "slurm" if shutil.which("sbatch") else "local"
    parser.add_argument(
        "--cluster", choices=("local", "slurm"), default=default, help=f"where it runs (here: {default})"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _command(name: str, arguments: Sequence[str]) -> str:
    """What the user would type, from the same place and in the same way."""
    runner = "uv run" if "UV" in os.environ else "python"
    return f"{runner} {shlex.join([sys.argv[0], name, *arguments])}"


COMMANDS: dict[str, cli.Command] = {
    "plan": ("what would run, and what is wrong or missing", plan),
    "submit": ("run everything that is not done", submit),
    "status": ("what is done, running, failed and blocked", status),
}

if __name__ == "__main__":
    sys.exit(cli.dispatch("launch.py", COMMANDS, sys.argv[1:]))
