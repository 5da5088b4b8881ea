"""The commands of a campaign: plan, submit, resume, cancel, status, logs.

Only argument parsing; everything else is in `medsyn.campaign`. Answers in well under a second: no torch here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from medsyn.cli import app
from medsyn.cli.invocation import command
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, InputProblems
from medsyn.stage import CampaignDirectory

if TYPE_CHECKING:
    from medsyn.campaign.slurm.site import Site
    from medsyn.campaign.state.campaign_file import Campaign
    from medsyn.campaign.tasks import Key
    from medsyn.config import Config


WATCH_SECONDS = 5


def plan(program: str, arguments: Sequence[str]) -> int:
    """Print what a campaign would run, and everything that is wrong with its inputs; write nothing."""
    parser = app.config_parser(program, "Show stages, tasks and shards, and check every input; nothing is written.")
    _add_cluster(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args(arguments)

    from rich.console import Console

    from medsyn.campaign.plan import prepare, show
    from medsyn.campaign.slurm import check, submit
    from medsyn.campaign.slurm import show as queue_outline

    loaded = app.load(args, tells=True)
    with app.progress_bars() as progress:
        checked = prepare.check(loaded, progress, here=args.cluster == "local")
    problems, arrays = list(checked.problems), None
    if args.cluster == "slurm":
        profile, found = check.read_site(loaded, asks_slurm=shutil.which("sinfo") is not None)
        problems += found
        if profile is not None and not any(problem.severity == "error" for problem in found):
            chunk = submit.chunk_size(profile) if shutil.which("scontrol") else submit.assumed_chunk(profile)
            arrays = queue_outline.jobs(checked.config, checked.plan, chunk), profile
    errors = any(problem.severity == "error" for problem in problems)
    done = prepare.done_tasks(checked)
    following = command("plan" if errors else "submit", [args.config, *args.overrides, "--cluster", args.cluster])
    if not errors and len(done) == len(checked.plan.tasks):
        following = command("status", app.named(args))
    if args.json:
        shown = show.as_dict(checked, done) | {"problems": [problem.as_dict() for problem in problems]}
        shown |= {"ready": not errors, "next": following}
        print(json.dumps(shown | ({"slurm": queue_outline.as_list(*arrays)} if arrays else {}), indent=2))
    else:
        show.show(Console(), checked, done)
        if arrays:
            queue_outline.show(Console(), *arrays)
        sys.stdout.flush()
        app.show_problems(problems)
        print(show.verdict(problems))
        print(f"next      {'once that is mended: ' if errors else ''}{following}")
    return EXIT_BAD_INPUT if errors else EXIT_DONE


def submit(program: str, arguments: Sequence[str]) -> int:
    """Run everything of a campaign that is not done yet."""
    return _submit(program, arguments, str(submit.__doc__), resumes=False)


def resume(program: str, arguments: Sequence[str]) -> int:
    """Continue a submitted campaign: run everything that is neither done nor in the queue."""
    return _submit(program, arguments, str(resume.__doc__), resumes=True)


def _submit(program: str, arguments: Sequence[str], description: str, resumes: bool) -> int:
    parser = app.config_parser(program, description)
    _add_cluster(parser, resumes)
    parser.add_argument("--max-parallel", type=_positive, metavar="N", help="tasks at once (cluster.max_parallel)")
    if resumes:
        text = "only this stage or task; may be repeated"
        parser.add_argument("--only", action="append", metavar="STAGE[:TASK]", default=[], help=text)
    args = parser.parse_intermixed_args(arguments)

    loaded = app.load(args, tells=True)
    if resumes and not CampaignDirectory(loaded.campaign.path).campaign_file.exists():
        raise app.not_submitted(args)
    if args.cluster is None:
        args.cluster = _ran_on(CampaignDirectory(loaded.campaign.path))
    site = _require_site(loaded) if args.cluster == "slurm" else None
    with ExitStack() as held:
        campaign = app.open_for_change(loaded, site is None, held)
        only = campaign.plan.select(args.only) if resumes and args.only else None
        if site is not None:
            return _queue(campaign, site, only, app.named(args))

        from rich.console import Console

        from medsyn.campaign.local import scheduler
        from medsyn.campaign.local.live_table import Display

        rest = command("resume", [*app.named(args), "--cluster", "local"])
        again = command(program.split()[-1], arguments)
        display = Display(campaign, Console(), again, (only, rest) if only else None)
        return scheduler.run(campaign, display, args.max_parallel, only=only)


def _require_site(loaded: Config) -> Site:
    """The cluster's profile; raises InputProblems if it has errors, together with those of the inputs."""
    from medsyn.campaign.plan import prepare
    from medsyn.campaign.slurm import check

    site, found = check.read_site(loaded)
    app.show_problems(problem for problem in found if problem.severity == "warning")
    errors = [problem for problem in found if problem.severity == "error"]
    if errors or site is None:
        raise InputProblems([*errors, *prepare.check(loaded).errors])
    return site


def _queue(campaign: Campaign, site: Site, only: set[Key] | None, named: Sequence[str]) -> int:
    from medsyn.campaign.slurm import submit

    try:
        outcome = submit.submit(campaign, site, only)
    except submit.Interrupted:
        print("interrupted; nothing was queued")
        return EXIT_INTERRUPTED
    for line in outcome.lines():
        print(line)
    if not outcome.all_done:
        print(f"next      {command('status', [*named, '--watch'])}")
    return EXIT_DONE


def cancel(program: str, arguments: Sequence[str]) -> int:
    """Stop every job and process of a campaign; finished and saved work is kept."""
    parser = app.config_parser(program, str(cancel.__doc__))
    args = parser.parse_intermixed_args(arguments)

    from medsyn.campaign import cancel as campaign_cancel
    from medsyn.campaign import guards
    from medsyn.campaign.slurm import submissions

    campaign = app.open_campaign(args)
    directory = campaign.directory
    guards.require_own(directory)
    count = campaign_cancel.launcher(directory, print) + campaign_cancel.jobs(directory, print)
    stopped, elsewhere = campaign_cancel.tasks(campaign, print)
    for one in elsewhere:
        print(f"{one}; end it there")
    if count + stopped or not elsewhere:
        print("cancelled" if count + stopped else "nothing of this campaign is running or queued")
    for original in submissions.originals(directory.ledger):
        print(f"this is a copy of {original}, whose jobs are left alone")
    where = "slurm" if submissions.read(directory.ledger, with_copied=True) else "local"
    print(f"next      to continue: {command('resume', [*app.named(args), '--cluster', where])}")
    return EXIT_FAILED if elsewhere else EXIT_DONE


def status(program: str, arguments: Sequence[str]) -> int:
    """Show where a campaign stands. Exit code: 0 all done, 1 something failed, 75 more to come."""
    parser = app.config_parser(program, str(status.__doc__))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", type=_seconds, metavar="[SECONDS]", help=f"refresh every SECONDS ({WATCH_SECONDS})")
    args = parser.parse_intermixed_args(_with_seconds(arguments))
    if args.json and args.watch:
        parser.error("--json prints once: omit --watch")

    from rich.console import Console

    from medsyn.campaign.status import as_json, as_text, figures, read

    campaign = app.open_campaign(args)
    found = read.read(campaign)
    seconds = figures.expected_seconds(campaign, here=not found.on_slurm)
    follow_up = _commands(args, found.on_slurm)
    if args.watch:
        return as_text.watch(Console(), lambda: read.read(campaign), follow_up, args.watch, seconds)
    if args.json:
        print(json.dumps(as_json.as_dict(found, follow_up, seconds), indent=2))
    else:
        as_text.show(Console(), found, follow_up, seconds)
    return found.exit_code


def logs(program: str, arguments: Sequence[str]) -> int:
    """Show what a task printed, the tasks and logs of a STAGE, or (without either) the last lines of failed tasks."""
    parser = app.config_parser(program, str(logs.__doc__))
    parser.add_argument("--lines", type=_positive, default=50, metavar="N", help="number of last lines to show (50)")
    parser.add_argument("--all", action="store_true", help="the whole log")
    parser.add_argument("--follow", action="store_true", help="keep printing until the task ends")
    parser.usage = f"{program} [-h] [--lines N | --all] [--follow] CONFIG [STAGE[:TASK]] [key=value ...]"
    args = parser.parse_intermixed_args(arguments)
    named = [word for word in args.overrides if "=" not in word]
    args.overrides = [word for word in args.overrides if "=" in word]
    if named[1:]:
        parser.error(f"one STAGE[:TASK] at a time: {' '.join(named)}")

    from rich.console import Console

    from medsyn.campaign.status import read, show_logs

    campaign = app.open_campaign(args)
    which = named[0] if named else None
    chosen = campaign.plan.select(named)
    keys = [planned.key for planned in campaign.plan if planned.key in chosen]
    if args.follow and len(keys) > 1:
        parser.error("--follow follows one task: name it as STAGE:TASK")
    found = read.read(campaign)
    if which is None:
        show_logs.failures(Console(), found)
    elif ":" in which or args.follow:
        again = (lambda: read.read(campaign)) if args.follow else None
        return show_logs.show(found, keys[0], None if args.all else args.lines, again)
    else:
        show_logs.overview(Console(), found, keys)
    return EXIT_DONE


def _commands(args: argparse.Namespace, on_slurm: bool) -> Callable[[str], str]:
    """What the user would type for a subcommand on the same campaign."""

    def typed(words: str) -> str:
        name, *options = words.split()
        if name == "resume":
            options += ["--cluster", "slurm" if on_slurm else "local"]
        return command(name, [*app.named(args), *options])

    return typed


def _with_seconds(arguments: Sequence[str]) -> list[str]:
    """`--watch` with its default, unless a number comes next: what follows may be the configuration."""
    following = [*arguments, ""][1:]
    return [
        f"--watch={WATCH_SECONDS}" if word == "--watch" and not after.replace(".", "", 1).isdigit() else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.1 <= number < 86400:
        raise argparse.ArgumentTypeError("must be 0.1 seconds or more, and less than 86400")
    return number


def _add_cluster(parser: argparse.ArgumentParser, resumes: bool = False) -> None:
    here = "slurm" if shutil.which("sbatch") else "local"
    default, said = (None, "where they ran before") if resumes else (here, f"here: {here}")
    text = f"where tasks run (default {said})"
    parser.add_argument("--cluster", choices=("local", "slurm"), default=default, help=text)


def _ran_on(directory: CampaignDirectory) -> str:
    """Where a campaign goes on unless the user says so: on Slurm if it ever was there."""
    from medsyn.campaign.slurm import submissions

    return "slurm" if submissions.read(directory.ledger, with_copied=True) else "local"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
