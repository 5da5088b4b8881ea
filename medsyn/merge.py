"""python -m medsyn merge: the tables of all shards as one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from medsyn.campaign.records import Campaign


def merge(program: str, arguments: Sequence[str]) -> int:
    """Write the tables of all shards as manifest.parquet and attempts.parquet of the campaign."""
    parser = argparse.ArgumentParser(prog=program, description=merge.__doc__)
    parser.add_argument("directory", type=Path, metavar="CAMPAIGN_DIR")
    args = parser.parse_args(arguments)

    from medsyn.campaign import records
    from medsyn.generation import shard_tables

    campaign = records.open_campaign(args.directory)
    folders = table_folders(campaign)
    missing = [folder for folder in folders if not (folder / shard_tables.MANIFEST_TABLE).is_file()]
    for folder in missing:
        print(f"{folder}: is not there yet")
    present = [folder for folder in folders if folder not in set(missing)]
    for name in (shard_tables.MANIFEST_TABLE, shard_tables.ATTEMPTS_TABLE):
        target = campaign.directory.root / name
        print(f"{target}: {shard_tables.merge((folder / name for folder in present), target)} rows")
    return EXIT_FAILED if missing else EXIT_DONE


def table_folders(campaign: Campaign) -> list[Path]:
    """Where the tables of all shards are, mode by mode."""
    from medsyn.generation.shard_tables import shard_directories

    ranges = [(modality, blocks) for modality, its in campaign.plan.shards.items() for blocks in its]
    return list(shard_directories(campaign.directory, campaign.config.generation.modes, ranges))
