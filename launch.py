"""The command people use: plan, submit and watch a campaign.

    python launch.py plan|submit|status|logs|cancel|resume CONFIG [key=value ...]

Only argument parsing; everything else is in `medsyn.campaign`. Answers in well under a second: no torch here.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from medsyn import cli
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, InputProblems
from medsyn.stage import CampaignDirectory

if TYPE_CHECKING:
    from medsyn.campaign.plan import Key
    from medsyn.campaign.records import Campaign
    from medsyn.campaign.slurm.queue import Job
    from medsyn.config import Config

WATCH_SECONDS = 5


def plan(program: str, arguments: Sequence[str]) -> int:
    """Print what a campaign would run, and everything that is wrong with its inputs; write nothing."""
    parser = cli.config_parser(program, "Show stages, tasks and shards, and check every input; nothing is written.")
    _add_cluster(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args(arguments)

    from rich.console import Console

    from medsyn import config
    from medsyn.campaign import outline, prepare
    from medsyn.campaign.slurm import check, site, submit
    from medsyn.campaign.slurm import outline as queue_outline

    loaded = config.load(args.config, args.overrides)
    with cli.progress_bars() as progress:
        checked = prepare.check(loaded, progress)
    problems, arrays = list(checked.problems), None
    if args.cluster == "slurm":
        found = check.problems(loaded, asks_slurm=shutil.which("sinfo") is not None)
        problems += found
        if not any(problem.severity == "error" for problem in found):
            profile = site.load(loaded.cluster.site)
            arrays = profile, submit.chunk_size(profile) if shutil.which("scontrol") else submit.assumed_chunk(profile)
    if args.json:
        told = outline.as_dict(checked) | {"problems": [problem.as_dict() for problem in problems]}
        print(json.dumps(told | ({"slurm": queue_outline.as_list(checked.plan, *arrays)} if arrays else {}), indent=2))
    else:
        outline.show(Console(), checked)
        if arrays:
            queue_outline.show(Console(), checked.plan, *arrays)
        cli.show_problems(problems)
    return EXIT_BAD_INPUT if any(problem.severity == "error" for problem in problems) else EXIT_DONE


def submit(program: str, arguments: Sequence[str]) -> int:
    """Run everything of a campaign that is not done, or go on with it."""
    return _submit(program, arguments, str(submit.__doc__), resumes=False)


def resume(program: str, arguments: Sequence[str]) -> int:
    """Go on with a campaign that was submitted: whatever is neither done nor in the queue."""
    return _submit(program, arguments, str(resume.__doc__), resumes=True)


def _submit(program: str, arguments: Sequence[str], description: str, resumes: bool) -> int:
    parser = cli.config_parser(program, description)
    _add_cluster(parser)
    parser.add_argument("--max-parallel", type=_positive, metavar="N", help="tasks at once (cluster.max_parallel)")
    if resumes:
        text = "nothing but this stage or task; may be given again"
        parser.add_argument("--only", action="append", metavar="STAGE[:TASK]", default=[], help=text)
    args = parser.parse_intermixed_args(arguments)

    from medsyn import config
    from medsyn.campaign import locks, records

    loaded = config.load(args.config, args.overrides)
    if resumes and records.read_facts(CampaignDirectory(loaded.campaign.path)) is None:
        command = _command("submit", [args.config, *args.overrides])
        raise InputError(args.config, f"this campaign has not been submitted: `{command}` does")
    if args.cluster == "slurm":
        _require_site(loaded)
        _require_same_shards(loaded)
    records.require_own(CampaignDirectory(loaded.campaign.path))
    if args.cluster == "local":
        _require_no_jobs(CampaignDirectory(loaded.campaign.path))
    campaign = cli.prepare(args.config, args.overrides)
    only = campaign.plan.select(args.only) if resumes and args.only else None
    with locks.exclusive(campaign.directory.ledger, campaign.directory.root):
        if args.cluster == "slurm":
            return _queue(campaign, only, [args.config, *args.overrides])

        from rich.console import Console

        from medsyn.campaign import local
        from medsyn.campaign.display import Display

        display = Display(campaign, Console(), _command(program.split()[-1], arguments))
        return local.run(campaign, display, args.max_parallel, only=only)


def _require_site(loaded: Config) -> None:
    """Raise InputProblems with all that is wrong with the cluster's profile and, if anything is, with the inputs."""
    from medsyn.campaign import prepare
    from medsyn.campaign.slurm import check

    found = check.problems(loaded)
    cli.show_problems(problem for problem in found if problem.severity == "warning")
    errors = [problem for problem in found if problem.severity == "error"]
    if errors:
        raise InputProblems([*errors, *prepare.check(loaded).errors])


def _require_no_jobs(directory: CampaignDirectory) -> None:
    """Raise InputError while jobs of the campaign are in Slurm's queue: they would do the same work."""
    if queued := _in_queue(directory):
        jobs = f"{len(queued)} of its tasks are in Slurm's queue"
        raise InputError(directory.root, f"{jobs}: cancel them first, or go on with --cluster slurm")


def _require_same_shards(loaded: Config) -> None:
    """Raise InputError if blocks are to be dealt anew while generate jobs are in Slurm's queue: which means which?"""
    from medsyn import config
    from medsyn.campaign import records, shards

    directory = CampaignDirectory(loaded.campaign.path)
    facts = records.read_facts(directory)
    changes = config.changes(facts["config"], loaded) if facts else {}
    changed = [key for key in shards.DEALT_BY if key in changes]
    if changed and any(stage == "generate" for stage, _ in _in_queue(directory)):
        reason = "it deals the shards anew, but generate jobs are in Slurm's queue: cancel them first"
        raise InputError("configuration", reason, key=changed[0])


def _in_queue(directory: CampaignDirectory) -> Mapping[Key, Job]:
    """The campaign's tasks that are in Slurm's queue; none where there is no Slurm."""
    from medsyn.campaign.slurm import queue, submissions

    return queue.view(submissions.read(directory.ledger)).tasks if shutil.which("squeue") else {}


def _queue(campaign: Campaign, only: set[Key] | None, named: Sequence[str]) -> int:
    from medsyn.campaign.preempt import EXIT_INTERRUPTED
    from medsyn.campaign.slurm import round as queueing
    from medsyn.campaign.slurm import site, submit

    try:
        outcome = submit.submit(campaign, site.load(campaign.config.cluster.site), only)
    except queueing.Interrupted:
        print("interrupted; nothing was queued")
        return EXIT_INTERRUPTED
    for line in outcome.lines():
        print(line)
    if not outcome.all_done:
        print(f"next      {_command('status', [*named, '--watch'])}")
    return EXIT_DONE


def cancel(program: str, arguments: Sequence[str]) -> int:
    """End every job and process of a campaign; what is done and what is saved stays."""
    parser = cli.config_parser(program, str(cancel.__doc__))
    args = parser.parse_intermixed_args(arguments)

    from medsyn import config
    from medsyn.campaign import cancel as campaign_cancel
    from medsyn.campaign import records
    from medsyn.campaign.slurm import submissions

    directory = records.open_campaign(config.load(args.config, args.overrides).campaign.path).directory
    records.require_own(directory)
    count = campaign_cancel.launcher(directory, print) + campaign_cancel.jobs(directory, print)
    print("cancelled" if count else "nothing of this campaign is running or queued")
    where = "slurm" if submissions.read(directory.ledger) else "local"
    print(f"next      to go on: {_command('resume', [args.config, *args.overrides, '--cluster', where])}")
    return EXIT_DONE


def status(program: str, arguments: Sequence[str]) -> int:
    """Show where a campaign stands. Exit code: 0 all done, 1 something failed, 75 there is more to come."""
    parser = cli.config_parser(program, str(status.__doc__))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--watch", type=_seconds, metavar="[SECONDS]", help=f"show it again every so often ({WATCH_SECONDS} s)"
    )
    args = parser.parse_intermixed_args(_with_seconds(arguments))
    if args.json and args.watch:
        parser.error("--json prints once: leave --watch out")

    from rich.console import Console

    from medsyn.campaign.status import expected, reading, script, show, watch

    campaign = _open(args)
    found, seconds = reading.read(campaign), expected.seconds(campaign)
    command = _commands(args, found.on_slurm)
    if args.watch:
        return watch.watch(Console(), lambda: reading.read(campaign), command, args.watch, seconds)
    if args.json:
        print(json.dumps(script.as_dict(found, command, seconds), indent=2))
    else:
        show.show(Console(), found, command, seconds)
    return found.exit_code


def logs(program: str, arguments: Sequence[str]) -> int:
    """Show what a task printed; of a STAGE list its tasks and logs; without one the last lines of failed tasks."""
    parser = cli.config_parser(program, str(logs.__doc__))
    parser.add_argument("--lines", type=_positive, default=50, metavar="N", help="how many of the last lines (50)")
    parser.add_argument("--all", action="store_true", help="the whole log")
    parser.add_argument("--follow", action="store_true", help="go on printing until the task ends")
    parser.usage = f"{program} [-h] [--lines N | --all] [--follow] CONFIG [STAGE[:TASK]] [key=value ...]"
    args = parser.parse_intermixed_args(arguments)
    named = [word for word in args.overrides if "=" not in word]
    args.overrides = [word for word in args.overrides if "=" in word]
    if named[1:]:
        parser.error(f"one STAGE[:TASK] at a time: {' '.join(named)}")

    from rich.console import Console

    from medsyn.campaign.status import output, reading

    campaign = _open(args)
    which = named[0] if named else None
    chosen = campaign.plan.select(named)
    keys = [planned.key for planned in campaign.plan if planned.key in chosen]
    if args.follow and len(keys) > 1:
        parser.error("--follow follows one task: name it as STAGE:TASK")
    found = reading.read(campaign)
    if which is None:
        output.failures(Console(), found)
    elif ":" in which or args.follow:
        again = (lambda: reading.read(campaign)) if args.follow else None
        return output.show(found, keys[0], None if args.all else args.lines, again)
    else:
        output.overview(Console(), found, keys)
    return EXIT_DONE


def _open(args: argparse.Namespace) -> Campaign:
    """The campaign, which must have been submitted, that the configuration is of."""
    from medsyn import config
    from medsyn.campaign import records

    return records.open_campaign(config.load(args.config, args.overrides).campaign.path)


def _commands(args: argparse.Namespace, on_slurm: bool) -> Callable[[str], str]:
    """What the user would type for a subcommand on the same campaign."""

    def command(words: str) -> str:
        name, *options = words.split()
        if name == "resume":
            options += ["--cluster", "slurm" if on_slurm else "local"]
        return _command(name, [args.config, *args.overrides, *options])

    return command


def _with_seconds(arguments: Sequence[str]) -> list[str]:
    """`--watch` with its default, unless a number comes next: what follows may be the configuration."""
    following = [*arguments[1:], ""]
    return [
        f"--watch={WATCH_SECONDS}" if word == "--watch" and not after.replace(".", "", 1).isdigit() else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.1 <= number < 86400:
        raise argparse.ArgumentTypeError("seconds, at least 0.1")
    return number


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
    "resume": ("go on with what is neither done nor queued", resume),
    "cancel": ("end every job and process of the campaign", cancel),
    "status": ("what is done, running, failed and blocked", status),
    "logs": ("what tasks printed", logs),
}

if __name__ == "__main__":
    sys.exit(cli.dispatch("launch.py", COMMANDS, sys.argv[1:]))
