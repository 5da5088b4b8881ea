"""medsyn verify and merge: check every file against its records; merge the tables of all shards into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.cli import app
from medsyn.cli import tasks as tasks_cli
from medsyn.cli.invocation import command
from medsyn.errors import EXIT_DONE, EXIT_FAILED, EXIT_SAVED, InputError
from medsyn.text import counted

if TYPE_CHECKING:
    from medsyn.campaign.state.campaign_file import Campaign
    from medsyn.campaign.tasks import PlannedTask
    from medsyn.generation.verify.campaign import Images
    from medsyn.generation.verify.finding import Finding
    from medsyn.generation.verify.rerun import Rerun
    from medsyn.stage import Task


_TASKS_SHOWN = 10


def verify(program: str, arguments: Sequence[str]) -> int:
    """Check every generated file of a campaign against its records, one line per finding.

    Exit code: 0 all as recorded, 1 findings, 75 none, but tasks are not done yet.
    """
    parser = app.config_parser(program, str(verify.__doc__))
    parser.add_argument("--rerun", type=int, metavar="N", help="regenerate N random images and compare")
    text = "move damaged files to quarantine, so that their tasks make them again"
    parser.add_argument("--repair", action="store_true", help=text)
    args = parser.parse_intermixed_args(arguments)
    if args.rerun is not None and args.rerun < 1:
        raise InputError("--rerun", f"must be 1 or more, got {args.rerun}")

    from medsyn.campaign import guards, repair

    campaign = app.open_campaign(args)
    if args.repair:
        guards.require_own(campaign.directory)
    _require_prompts(campaign)
    with repair.alone(campaign) if args.repair else nullcontext():
        images, unfinished = _images(campaign), _unfinished(campaign)
        again = _rerun(args.rerun)
        findings = []
        for finding in _findings(campaign, images, unfinished, again):
            print(finding)
            findings.append(finding)
        _summary(images, len(unfinished), again, len(findings))
        if args.repair and findings:
            _report_repair(*repair.quarantine(campaign, findings), campaign.directory.root)
    if findings:
        return EXIT_FAILED
    return EXIT_SAVED if unfinished else EXIT_DONE


def _require_prompts(campaign: Campaign) -> None:
    """Raise InputError if the prompt list is damaged: it says which images there must be."""
    from medsyn.campaign.state import campaign_file

    if reason := campaign_file.difference(campaign.inputs["prompts"], campaign.directory.root, hashes=True):
        way_out = "submit the campaign's configuration again to rewrite it"
        raise InputError(str(campaign.config.data.prompts), f"{reason}: {way_out}")


def _images(campaign: Campaign) -> list[Images]:
    from medsyn.generation.block_store import read_blocks
    from medsyn.generation.verify.campaign import Images

    images = []
    for modality in campaign.plan.shards:
        blocks = read_blocks(campaign.config, modality)
        for mode in campaign.config.generation.modes:
            images.append(Images(campaign.config, campaign.directory, mode, modality, blocks))
    return images


def _unfinished(campaign: Campaign) -> list[Task]:
    """The generate tasks without a done marker: nobody has said that all of their images are there."""
    from medsyn.campaign.state import done_index

    done = done_index.names(campaign.directory.done("generate", "any").parent)
    tasks = [planned.task for planned in campaign.plan.by_stage.get("generate", [])]
    return [task for task in tasks if task.name not in done]


def _rerun(count: int | None) -> Rerun | None:
    if count is None:
        return None
    from medsyn.generation.verify.rerun import Rerun  # torch

    return Rerun(count)


def _findings(
    campaign: Campaign, images: Sequence[Images], unfinished: Sequence[Task], again: Rerun | None
) -> Iterator[Finding]:
    """Everything wrong with the images, their tables and the markers of their tasks."""
    from medsyn.campaign import repair
    from medsyn.campaign.tables import table_folders
    from medsyn.generation.verify.campaign import check_environment, strangers
    from medsyn.generation.verify.parquet import TABLES, check_merged_table

    shards = campaign.plan.shards
    reported: set[Path] = set()
    for one in images:
        missing = {task.blocks for task in unfinished if task.blocks and task.modality == one.modality}
        for finding in one.findings(shards[one.modality], missing):
            reported |= {finding.damaged} if finding.damaged else set()
            yield finding
    yield from check_environment(campaign.directory, images)
    yield from strangers(campaign.config, campaign.directory, list(shards))
    folders = table_folders(campaign)
    for name in TABLES:
        yield from check_merged_table(campaign.directory.root / name, [folder / name for folder in folders])
    yield from repair.marker_findings(campaign, reported)
    if again is not None:
        with app.progress_bars() as progress:
            yield from again.findings(images, progress)


def _summary(images: Sequence[Images], unfinished: int, again: Rerun | None, found: int) -> None:
    expected = sum(one.blocks.item_count for one in images)
    result = counted(found, "finding") if found else "no findings"
    made = f", {again.made} regenerated" if again is not None else ""
    if unfinished:
        count = sum(one.to_make for one in images)
        made += f", {count} of them not made yet ({counted(unfinished, 'task')} not done)"
    print(f"{counted(expected, 'image')} asked for{made}: {result}")
    if again is not None and again.elsewhere:
        devices = ", ".join(f"{count} on {device}" for device, count in sorted(again.elsewhere.items()))
        print(f"cannot be compared here: images made {devices}")


def _report_repair(folder: Path, tasks: Sequence[PlannedTask], directory: Path) -> None:
    if folder.is_dir():
        print(f"damaged files are in {folder} now; you may delete it")
    if tasks:
        count = counted(len(tasks), "task")
        print(f"{count} must run again: run `{command('resume', [str(directory)])}`, or")
        for planned in tasks[:_TASKS_SHOWN]:
            print(f"  {command(*tasks_cli.words(planned.key, directory))}")
        if len(tasks) > _TASKS_SHOWN:
            print(f"  and {len(tasks) - _TASKS_SHOWN} more")


def merge(program: str, arguments: Sequence[str]) -> int:
    """Merge the tables of all shards into the campaign's manifest.parquet and attempts.parquet."""
    args = app.config_parser(program, str(merge.__doc__)).parse_intermixed_args(arguments)

    from medsyn.campaign import guards
    from medsyn.campaign.tables import table_folders
    from medsyn.generation.write import parquet

    campaign = app.open_campaign(args)
    guards.require_own(campaign.directory)
    folders = table_folders(campaign)
    missing = [folder for folder in folders if not (folder / parquet.MANIFEST_TABLE).is_file()]
    present = [folder for folder in folders if folder not in set(missing)]
    if not present:
        raise InputError(campaign.directory.root, "no task has made its images yet, so there is nothing to merge")
    for folder in missing:
        print(f"{folder}: does not exist yet")
    for name in (parquet.MANIFEST_TABLE, parquet.ATTEMPTS_TABLE):
        target = campaign.directory.root / name
        print(f"{target}: {parquet.merge((folder / name for folder in present), target)} rows")
    return EXIT_FAILED if missing else EXIT_DONE
