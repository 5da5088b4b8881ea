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


def read_manifest(campaign: str | Path) -> pd.DataFrame:
    """Every image that a campaign was asked for, a row each; of a running one those of the tasks that are done.

    Args:
        campaign: its directory.

    Returns:
        The columns of docs/output.md, and the prompt list's further ones as text. `file` is the absolute path of the
        PNG file, or of the tar that has it as `member`, and missing where there is no image.

    Raises:
        InputError: it is no campaign's directory, no task has made images yet, or a table is damaged.
    """
    frame = _read(campaign, MANIFEST_TABLE)
    root = Path(campaign).absolute() / "work" / "generate"
    frame["file"] = frame["file"].map(lambda file: str(root / file), na_action="ignore")
    return frame


def read_attempts(campaign: str | Path) -> pd.DataFrame:
    """Every candidate of a campaign's images, a row each: scores, whether it passed, and why it is not the image.

    Args:
        campaign: its directory.

    Returns:
        The columns of docs/output.md.

    Raises:
        InputError: as `read_manifest` does.
    """
    return _read(campaign, ATTEMPTS_TABLE)


def _read(root: str | Path, name: str) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    files = [folder / name for folder in table_folders(open_campaign(Path(root)))]
    present = [file for file in files if file.is_file()]
    if not present:
        raise InputError(root, "no task has made its images yet; `medsyn status` says how far the campaign is")
    # a seed does not fit into a float, which pandas would make of a whole number that may be missing
    nullable = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = read_tables(present).to_pandas(types_mapper=nullable.get)
    return frame
