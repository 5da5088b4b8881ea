"""Commands that run one task: those named after stages, and `worker`, which schedulers call."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.cli import app
from medsyn.errors import EXIT_DONE, InputError, InputProblems
from medsyn.launcher import launched

if TYPE_CHECKING:
    from medsyn.campaign.tasks import Key
    from medsyn.config import Config


def run_stage(stage: str, program: str, arguments: Sequence[str]) -> int:
    """Run one task of a stage, or list the tasks; `stage` is `rlhf` or one of `medsyn.stage.STAGES`."""
    parser = app.config_parser(program, "Run one task of a campaign, exactly as a queued task runs it.")
    parser.add_argument("--task", help="the task's name or index; without it the tasks are listed")
    if stage == "rlhf":
        parser.add_argument("--stage", choices=("1", "2"), required=True, help="1: all ratings; 2: one modality")
    args = parser.parse_intermixed_args(arguments)
    if stage == "rlhf":
        stage = f"rlhf-stage{args.stage}"

    if args.task is None:
        return _list_tasks(app.load(args), stage)

    from medsyn.campaign import worker

    if (place := launched()) is not None and place.rank > 0:
        return worker.follow(stage)
    campaign = app.open_for_change(app.load(args), here=True)
    return worker.run_task(campaign.directory.root, stage, args.task)


finetune = partial(run_stage, "finetune")
rlhf = partial(run_stage, "rlhf")
align = partial(run_stage, "align")
evaluate = partial(run_stage, "evaluate")


def words(key: Key, directory: Path) -> tuple[str, list[str]]:
    """The command that runs one task of a campaign, and its arguments."""
    stage, name = key
    command, _, number = stage.partition("-stage")
    return command, [str(directory), *(["--stage", number] if number else []), "--task", name]


def _list_tasks(config: Config, stage: str) -> int:
    from medsyn.campaign.plan import inputs
    from medsyn.campaign.state import campaign_file
    from medsyn.stage import CampaignDirectory

    before = campaign_file.read_record(CampaignDirectory(config.campaign.path))
    with app.progress_bars() as progress:
        checked = inputs.check(config, before, progress)
    tasks = checked.plan.by_stage.get(stage, [])
    for planned in tasks:
        print(f"{planned.task.index:>6}  {planned.task.name}")
    if not tasks and checked.errors:
        raise InputProblems(checked.errors)
    if not tasks:
        raise InputError(stage, "this campaign has no such stage")
    return EXIT_DONE


def generate(program: str, arguments: Sequence[str]) -> int:
    """Run one shard of a campaign, or, with --prompt, make images of one prompt."""
    from medsyn.cli import one_prompt

    if one_prompt.is_meant(arguments):
        return one_prompt.generate(program, arguments)
    if list(arguments) in (["-h"], ["--help"]):
        print(f"{one_prompt.parser(program).format_help()}\nor, for a task of a campaign:\n")
    return run_stage("generate", program, arguments)


def work(program: str, arguments: Sequence[str]) -> int:
    """Run one task of a prepared campaign; schedulers call it."""
    parser = argparse.ArgumentParser(prog=program, description=work.__doc__)
    parser.add_argument("directory", type=Path, metavar="CAMPAIGN_DIR")
    parser.add_argument("stage", metavar="STAGE")
    parser.add_argument("task", metavar="INDEX", help="the task's index or name")
    parser.add_argument("--parent", type=int, metavar="PID", help="save and exit when this process ends")
    args = parser.parse_args(arguments)

    from medsyn.campaign import worker

    if (place := launched()) is not None and place.rank > 0:
        return worker.follow(args.stage)
    return worker.run_task(args.directory, args.stage, args.task, parent=args.parent)
