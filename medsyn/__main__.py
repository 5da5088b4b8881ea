"""python -m medsyn <command>: any single task of a campaign by hand, and tools around it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medsyn import cli, merge, verify
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, InputProblems


def run_stage(stage: str, program: str, arguments: Sequence[str]) -> int:
    """Run one task of a stage, or list the tasks; `stage` is `rlhf` or one of `medsyn.stage.STAGES`."""
    parser = cli.config_parser(program, "Run one task of a campaign, exactly as a queued task runs it.")
    parser.add_argument("--task", help="the task's name or index; without it the tasks are listed")
    if stage == "rlhf":
        parser.add_argument("--stage", choices=("1", "2"), required=True, help="1: all ratings; 2: one modality")
    args = parser.parse_intermixed_args(arguments)
    if stage == "rlhf":
        stage = f"rlhf-stage{args.stage}"

    if args.task is None:
        return _list_tasks(args.config, args.overrides, stage)

    from medsyn.campaign import worker

    return worker.run_task(cli.prepare(args.config, args.overrides).directory.root, stage, args.task)


def _list_tasks(path: str, overrides: Sequence[str], stage: str) -> int:
    from medsyn import config
    from medsyn.campaign import inputs

    with cli.progress_bars() as progress:
        checked = inputs.check(config.load(path, overrides), progress)
    tasks = checked.plan.by_stage.get(stage, [])
    for planned in tasks:
        print(f"{planned.task.index:>6}  {planned.task.name}")
    if not tasks and checked.errors:
        raise InputProblems(checked.errors)
    if not tasks:
        raise InputError(stage, "this campaign does not have that stage")
    return EXIT_DONE


def generate(program: str, arguments: Sequence[str]) -> int:
    """Run one shard of a campaign, or, with --prompt, make images of one prompt."""
    from medsyn import single

    if single.is_meant(arguments):
        return single.generate(program, arguments)
    if list(arguments) in (["-h"], ["--help"]):
        print(f"{single.parser(program).format_help()}\nor, of a campaign:\n")
    return run_stage("generate", program, arguments)


def work(program: str, arguments: Sequence[str]) -> int:
    """Run one task of a prepared campaign: what schedulers call."""
    parser = argparse.ArgumentParser(prog=program, description=work.__doc__)
    parser.add_argument("directory", type=Path, metavar="CAMPAIGN_DIR")
    parser.add_argument("stage", metavar="STAGE")
    parser.add_argument("task", metavar="INDEX", help="the task's index or name")
    parser.add_argument("--parent", type=int, metavar="PID", help="save and leave when this process ends")
    args = parser.parse_args(arguments)

    from medsyn.campaign import worker

    return worker.run_task(args.directory, args.stage, args.task, parent=args.parent)


def check(program: str, arguments: Sequence[str]) -> int:
    """Read tables and every image they name; list everything that is wrong."""
    parser = argparse.ArgumentParser(prog=program, description=check.__doc__)
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="data set, ratings or prompt list")
    parser.add_argument("--root", type=Path, help="folder that the tables' files are in (the table's own)")
    parser.add_argument("--modality-column", default="modality", metavar="NAME", help="header of the modality column")
    parser.add_argument("--allow-synthetic", action="store_true", help="images marked as synthetic are no problem")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)

    from medsyn.data.check import check_tables

    with cli.progress_bars() as progress:
        tell = partial(progress, "reading images")
        problems = check_tables(args.tables, args.root, args.modality_column, args.allow_synthetic, tell)
    if args.json:
        print(json.dumps([problem.as_dict() for problem in problems], indent=2, ensure_ascii=False))
    else:
        for problem in problems:
            print(f"{problem.severity}: {problem}")
        print("1 problem" if len(problems) == 1 else f"{len(problems) or 'no'} problems")
    return EXIT_BAD_INPUT if any(problem.severity == "error" for problem in problems) else EXIT_DONE


def prompts(program: str, arguments: Sequence[str]) -> int:
    """Check a prompt list, or build one that is balanced."""
    from medsyn import prompts

    return prompts.main(program, arguments)


def phantoms(program: str, arguments: Sequence[str]) -> int:
    """Draw the procedural data set: images, metadata.csv, ratings.csv and prompts.csv."""
    from medsyn.config import PhantomsSection, validate

    defaults = PhantomsSection()
    parser = argparse.ArgumentParser(prog=program, description=phantoms.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--images-per-kind", type=int, default=defaults.images_per_kind, metavar="N")
    parser.add_argument("--prompts-per-kind", type=int, default=defaults.prompts_per_kind, metavar="N")
    parser.add_argument("--image-size", type=int, default=defaults.image_size, metavar="PIXELS")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    size = {name: getattr(args, name) for name in PhantomsSection.model_fields}
    validate({"campaign": {"seed": args.seed}, "data": {"phantoms": size}}, "command line")

    from medsyn.data.phantoms import write_dataset

    try:
        with cli.progress_bars() as progress:
            write_dataset(args.directory, **size, seed=args.seed, progress=partial(progress, "drawing phantoms"))
    except OSError as error:
        raise InputError(args.directory, f"cannot be written: {error.strerror}") from None
    print(args.directory)
    return EXIT_DONE


def pretrain(program: str, arguments: Sequence[str]) -> int:
    """Train the embedded tiny model again (an hour or more)."""
    parser = argparse.ArgumentParser(prog=program, description=pretrain.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where the diffusers directory is written")
    args = parser.parse_args(arguments)

    from medsyn.training import pretrain as training

    print(training.pretrain(args.directory))
    return EXIT_DONE


def calibrate(program: str, arguments: Sequence[str]) -> int:
    """Paint a few batches with the campaign's pretrained model, and tell the rate to put into the configuration."""
    from medsyn import calibrate

    return calibrate.calibrate(program, arguments)


def doctor(program: str, arguments: Sequence[str]) -> int:
    """Tell whether this machine is fit for a campaign, and what it will choose."""
    from medsyn import doctor

    return doctor.main(list(arguments))


COMMANDS: dict[str, cli.Command] = {
    "finetune": ("fine-tune the model of one modality", partial(run_stage, "finetune")),
    "rlhf": ("train Selector and Policy (--stage 1) or a modality's Policy (--stage 2)", partial(run_stage, "rlhf")),
    "generate": ("generate one shard of the prompt list, or with --prompt images of one prompt", generate),
    "evaluate": ("measure the campaign and write its report", partial(run_stage, "evaluate")),
    "worker": ("run one task of a prepared campaign: what schedulers call", work),
    "verify": ("check every generated file against its manifest", verify.verify),
    "merge": ("the tables of all shards as one", merge.merge),
    "check": ("read tables and every image they name, list what is wrong", check),
    "prompts": ("check a prompt list, or build one that is balanced", prompts),
    "phantoms": ("draw the procedural data set", phantoms),
    "pretrain": ("train the embedded tiny model again (an hour or more)", pretrain),
    "calibrate": ("measure the rate of this machine, for the plan's estimates", calibrate),
    "doctor": ("is this machine fit for a campaign?", doctor),
}


def main() -> int:
    """The `medsyn` command, which the package installs; `python -m medsyn` is the same."""
    return cli.dispatch("medsyn", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(cli.dispatch("python -m medsyn", COMMANDS, sys.argv[1:]))
