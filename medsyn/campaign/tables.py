"""What a campaign's tasks have made, as tables for analysis: a row per image, and one per candidate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.campaign.state.campaign_file import Campaign, open_campaign
from medsyn.errors import InputError
from medsyn.generation.write.parquet import ATTEMPTS_TABLE, MANIFEST_TABLE, read_tables, shard_directories

if TYPE_CHECKING:
    import pandas as pd


def table_folders(campaign: Campaign) -> list[Path]:
    """Where the tables of all shards are, mode by mode."""
    ranges = [(modality, blocks) for modality, its in campaign.plan.shards.items() for blocks in its]
    return list(shard_directories(campaign.directory, campaign.config.generation.modes, ranges))


def read_manifest(campaign: str | Path | Campaign) -> pd.DataFrame:
    """Every image that a campaign was asked for, a row each; of a running one those of the tasks that are done.

    Args:
        campaign: its directory, or the campaign as `open_campaign` returns it.

    Returns:
        The columns of docs/output.md, and the prompt list's further ones as text. `file` is the absolute path of the
        PNG file, or of the tar that has it as `member`, and missing where there is no image.

    Raises:
        InputError: it is no campaign's directory, no task has made images yet, or a table is damaged.
    """
    opened = _opened(campaign)
    frame = _read(opened, MANIFEST_TABLE)
    root = opened.directory.root / "work" / "generate"
    frame["file"] = frame["file"].map(lambda file: str(root / file), na_action="ignore")
    return frame


def read_attempts(campaign: str | Path | Campaign) -> pd.DataFrame:
    """Every candidate of a campaign's images, a row each: scores, whether it passed, and why it is not the image.

    Args:
        campaign: its directory, or the campaign as `open_campaign` returns it.

    Returns:
        The columns of docs/output.md.

    Raises:
        InputError: as `read_manifest` does.
    """
    return _read(_opened(campaign), ATTEMPTS_TABLE)


def _opened(campaign: str | Path | Campaign) -> Campaign:
    return campaign if isinstance(campaign, Campaign) else open_campaign(Path(campaign).absolute())


def _read(campaign: Campaign, name: str) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    files = [folder / name for folder in table_folders(campaign)]
    present = [file for file in files if file.is_file()]
    if not present:
        reason = "no task has made its images yet; `medsyn status` says how far the campaign is"
        raise InputError(campaign.directory.root, reason)
    # a seed does not fit into a float, which pandas would make of a whole number that may be missing
    nullable = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = read_tables(present).to_pandas(types_mapper=nullable.get)
    return frame
