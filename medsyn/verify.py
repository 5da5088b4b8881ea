"""python -m medsyn verify and merge: are all images there as recorded, and their tables as one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn import cli
from medsyn.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from medsyn.campaign.records import Campaign

Shards = dict[str, list[tuple[int, int]]]  # by modality


def verify(program: str, arguments: Sequence[str]) -> int:
    """Check every generated file of a campaign against its manifest; exit code 1 and one line per finding."""
    parser = argparse.ArgumentParser(prog=program, description=verify.__doc__)
    parser.add_argument("directory", type=Path, metavar="CAMPAIGN_DIR")
    parser.add_argument("--rerun", type=int, default=0, metavar="N", help="make N random images again and compare")
    args = parser.parse_args(arguments)

    from medsyn.campaign import records
    from medsyn.generation.shard import read_blocks
    from medsyn.generation.verify import Finding, Images, rerun

    campaign = records.open_campaign(args.directory)
    config, shards = campaign.config, _shards(campaign)
    images = []
    for modality in shards:
        blocks = read_blocks(config, modality)
        images += [Images(config, campaign.directory, mode, modality, blocks) for mode in config.generation.modes]

    def findings() -> Iterator[Finding]:
        for one in images:
            yield from one.findings()
            yield from one.check_tables(shards[one.modality])
        if args.rerun:
            with cli.progress_bars() as progress:
                yield from rerun(images, args.rerun, progress)

    found = 0
    for finding in findings():
        print(finding)
        found += 1
    expected = sum(one.blocks.item_count for one in images)
    again = f", {args.rerun} made again" if args.rerun else ""
    told = "1 finding" if found == 1 else f"{found or 'no'} findings"
    print(f"{expected} images asked for{again}: {told}")
    return EXIT_FAILED if found else EXIT_DONE


def _shards(campaign: Campaign) -> Shards:
    """The ranges of blocks of every modality's tasks."""
    shards: Shards = {}
    for planned in campaign.plan.by_stage.get("generate", []):
        if planned.task.modality is not None and planned.task.blocks is not None:
            shards.setdefault(planned.task.modality, []).append(planned.task.blocks)
    return shards


def merge(program: str, arguments: Sequence[str]) -> int:
    """Write the tables of all shards as manifest.parquet and attempts.parquet of the campaign."""
    parser = argparse.ArgumentParser(prog=program, description=merge.__doc__)
    parser.add_argument("directory", type=Path, metavar="CAMPAIGN_DIR")
    args = parser.parse_args(arguments)

    from medsyn.campaign import records
    from medsyn.generation import shard_tables

    campaign = records.open_campaign(args.directory)
    ranges = [(modality, blocks) for modality, its in _shards(campaign).items() for blocks in its]
    folders = list(shard_tables.shard_directories(campaign.directory, campaign.config.generation.modes, ranges))
    missing = [folder for folder in folders if not (folder / shard_tables.MANIFEST_TABLE).is_file()]
    for folder in missing:
        print(f"{folder}: is not there yet")
    present = [folder for folder in folders if folder not in set(missing)]
    for name in (shard_tables.MANIFEST_TABLE, shard_tables.ATTEMPTS_TABLE):
        target = campaign.directory.root / name
        print(f"{target}: {shard_tables.merge((folder / name for folder in present), target)} rows")
    return EXIT_FAILED if missing else EXIT_DONE
