"""A shard's records as two Parquet tables, and those of all shards as two for the campaign.

`manifest.parquet` has a row for every requested image, `attempts.parquet` one for every candidate. Both are
made from the blocks' own records, which remain authoritative. Only `gpu_seconds` and `device` may vary between runs.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn import disk
from medsyn.data.prompts.formats import passthrough_name
from medsyn.errors import InputError
from medsyn.generation.block_store import ATTEMPTS, TIMING, read_manifest
from medsyn.records import AttemptRecord, ImageRecord, Schema, columns, fields
from medsyn.stage import CampaignDirectory

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST_TABLE, ATTEMPTS_TABLE = "manifest.parquet", "attempts.parquet"

Row = Mapping[str, Any]
Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # of the manifest, and of the attempts


@dataclass(frozen=True)
class Place:
    """Where a block is, and what it is a block of."""

    directory: CampaignDirectory
    mode: str
    modality: str
    number: int

    @property
    def path(self) -> Path:
        """The block's directory."""
        return self.directory.block(self.mode, self.modality, self.number)


def write_shard_tables(directory: CampaignDirectory, mode: str, modality: str, blocks: tuple[int, int]) -> None:
    """Write both tables of the shard with the (half-open) range `blocks`; all of its blocks must exist.

    The blocks' names are on disk before the tables', so that a power cut leaves no table of blocks that are not there.
    """
    manifest: list[dict[str, Any]] = []
    attempts: list[dict[str, Any]] = []
    places = [Place(directory, mode, modality, number) for number in range(*blocks)]
    for place in places:
        made, tried = _read_rows(place)
        manifest += made
        attempts += tried
    for part in dict.fromkeys(place.path.parent for place in places):
        disk.fsync_directory(part)
    tables = shard_tables(manifest, attempts).items()
    disk.write_together(directory.shard(mode, modality, blocks), {name: _parquet(table) for name, table in tables})


def _read_rows(place: Place) -> Rows:
    """A block's rows of both tables; raises InputError if it is damaged."""
    records = read_manifest(place.path)
    try:
        if records is not None:
            attempts, timing = list(disk.read_jsonl(place.path / ATTEMPTS)), disk.read_json(place.path / TIMING)
            return block_rows(place, records, attempts, timing)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    reason = "is damaged or missing; run the task again, and if that does not help, `medsyn verify --repair`"
    raise InputError(place.path, reason)


def shard_tables(manifest: Sequence[Row], attempts: Sequence[Row]) -> dict[str, pa.Table]:
    """Both tables of a shard by file name, from the rows of its blocks."""
    return {MANIFEST_TABLE: _table(manifest, ImageRecord), ATTEMPTS_TABLE: _table(attempts, AttemptRecord)}


def block_rows(
    place: Place, records: Sequence[Mapping[str, Any]], attempts: Sequence[Mapping[str, Any]], timing: Mapping[str, Any]
) -> Rows:
    """A block's rows of both tables, from its three files."""
    seconds = float(timing["seconds"]) / max(len(attempts), 1)
    devices = timing.get("devices") or [None] * len(records)
    shared = {"mode": place.mode, "modality": place.modality, "block": place.number}
    tried = Counter((attempt["id"], attempt["replicate"]) for attempt in attempts)
    root = place.directory.work("generate", place.mode).parent
    manifest = []
    for record, device in zip(records, devices, strict=True):
        row = {key: value for key, value in record.items() if key not in _NOT_COLUMNS}
        further = {passthrough_name(key): value for key, value in record.get("extra", {}).items()}
        row |= {key: None if value is None else str(value) for key, value in further.items()}
        row |= {**shared, "device": device, "gpu_seconds": seconds * tried[record["id"], record["replicate"]]}
        if record["file"] is not None:
            archive = record.get("archive")
            row["file"] = str((place.path / (archive or record["file"])).relative_to(root))
            row["member"] = record["file"] if archive else None
        manifest.append(row)
    return manifest, [{**attempt, **shared, "gpu_seconds": seconds} for attempt in attempts]


_NOT_COLUMNS = {field.name for field in fields(ImageRecord) if field.column_type is None}


def _table(rows: Sequence[Row], schema: Schema) -> pa.Table:
    """Rows as a table: the columns of the schema, then the passthrough columns of the prompt list."""
    import pyarrow as pa

    types = columns(schema)
    further = sorted({key for row in rows for key in row} - types.keys())
    arrow = pa.schema([(name, pa.type_for_alias(types.get(name, "string"))) for name in (*types, *further)])
    return pa.Table.from_arrays([pa.array([row.get(f.name) for row in rows], f.type) for f in arrow], schema=arrow)


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def merge(sources: Iterable[Path], target: Path) -> int:
    """Write the rows of Parquet files, in order, to one; return how many. Holds one of them in memory at a time.

    A column that some of them lack is null in their rows.
    """
    import pyarrow.parquet as pq

    files = list(sources)
    schema = _common_schema(files)
    rows = 0
    disk.make_directory(target.parent)
    temporary = disk.temporary_sibling(target)
    try:
        with disk.writing(target), pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for file in files:
                table = fitted(_read(pq.read_table, file), schema)
                writer.write_table(table)
                rows += len(table)
        disk.publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def read_tables(files: Sequence[Path]) -> pa.Table:
    """The rows of Parquet files, in order, as one table; a column that some of them lack is null in their rows.

    Raises:
        InputError: one of them is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _common_schema(files)
    return pa.concat_tables([fitted(_read(pq.read_table, file), schema) for file in files])


def _common_schema(files: Iterable[Path]) -> pa.Schema:
    """The columns that any of the files has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = [_read(pq.read_schema, file) for file in files]
    return pa.unify_schemas(schemas) if schemas else pa.schema([])


def _read(read: Callable[[Path], Any], file: Path) -> Any:
    """What `read` makes of a file; raises InputError if it is damaged."""
    import pyarrow as pa

    try:
        return read(file)
    except (OSError, pa.ArrowException) as error:
        reason = f"damaged ({str(error).splitlines()[0]}); delete it and run its task again"
        raise InputError(file, reason) from None


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema`; missing ones are null."""
    import pyarrow as pa

    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names)


def shard_directories(
    directory: CampaignDirectory, modes: Sequence[str], shards: Sequence[tuple[str, tuple[int, int]]]
) -> Iterator[Path]:
    """The directories of the tables of all shards, (modality, blocks) each, mode by mode."""
    for mode in modes:
        for modality, blocks in shards:
            yield directory.shard(mode, modality, blocks)
