"""A shard's records as two Parquet tables, and those of all shards as two for the campaign.

`manifest.parquet` has a row for every image that was asked for, `attempts.parquet` one for every candidate. Both are
made from the blocks' own records, which stay the truth. Only `gpu_seconds` and `device` may differ from run to run.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn import disk
from medsyn.data.prompts.formats import carried_name
from medsyn.errors import InputError
from medsyn.generation.block_store import ATTEMPTS, TIMING, read_manifest
from medsyn.stage import CampaignDirectory

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST_TABLE, ATTEMPTS_TABLE = "manifest.parquet", "attempts.parquet"

_MANIFEST = {
    **dict.fromkeys(("id", "prompt", "modality", "mode"), "string"),
    **{"replicate": "int32", "seed": "int64", "accepted": "bool", "reason": "string"},
    **{"attempts": "int32", "attempt": "int32", "selector": "float64", "policy": "float64", "precision": "string"},
    **{"num_inference_steps": "int32", "guidance_scale": "float64", "negative_prompt": "string"},
    **{"file": "string", "member": "string", "offset": "int64", "bytes": "int64", "sha256": "string"},
    **{"width": "int32", "height": "int32", "dicom": "string", "dicom_sha256": "string"},
    **dict.fromkeys(("model_fingerprint", "config_fingerprint", "scorers_fingerprint"), "string"),
    **{"synthetic": "bool", "scheduler": "string", "batch_size": "int32", "dtype": "string", "attention": "string"},
    **{"container": "string", "software": "string", "device": "string", "block": "int32", "gpu_seconds": "float64"},
}
_ATTEMPTS = {
    **{"id": "string", "replicate": "int32", "modality": "string", "mode": "string"},
    **{"attempt": "int32", "seed": "int64", "finite": "bool", "selector": "float64", "policy": "float64"},
    **{"precision": "string", "passed": "bool", "reason": "string", "chosen": "bool"},
    **{"block": "int32", "gpu_seconds": "float64"},
}


Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # of the manifest, and of the attempts
Record = Mapping[str, Any]


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
    """Write both tables of the shard with the (half-open) range `blocks`, which are all there."""
    manifest: list[dict[str, Any]] = []
    attempts: list[dict[str, Any]] = []
    for number in range(*blocks):
        made, tried = _read_rows(Place(directory, mode, modality, number))
        manifest += made
        attempts += tried
    target = directory.shard(mode, modality, blocks)
    for name, table in shard_tables(manifest, attempts).items():
        disk.write_atomic(target / name, _parquet(table))


def _read_rows(place: Place) -> Rows:
    """A block's rows of both tables; raises InputError if it is damaged."""
    records = read_manifest(place.path)
    try:
        if records is not None:
            attempts, timing = list(disk.read_jsonl(place.path / ATTEMPTS)), disk.read_json(place.path / TIMING)
            return block_rows(place, records, attempts, timing)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    reason = "is damaged or not there; run the task again, and if that does not help `medsyn verify --repair`"
    raise InputError(place.path, reason)


def shard_tables(manifest: Sequence[Record], attempts: Sequence[Record]) -> dict[str, pa.Table]:
    """Both tables of a shard by their files' names, from the rows of its blocks."""
    return {MANIFEST_TABLE: _table(manifest, _MANIFEST), ATTEMPTS_TABLE: _table(attempts, _ATTEMPTS)}


def block_rows(place: Place, records: Sequence[Record], attempts: Sequence[Record], timing: Record) -> Rows:
    """A block's rows of both tables, from what its three files say."""
    seconds = float(timing["seconds"]) / max(len(attempts), 1)
    devices = timing.get("devices") or [None] * len(records)
    shared = {"mode": place.mode, "modality": place.modality, "block": place.number}
    tried = Counter((attempt["id"], attempt["replicate"]) for attempt in attempts)
    root = place.directory.work("generate", place.mode).parent
    manifest = []
    for record, device in zip(records, devices, strict=True):
        row = {key: value for key, value in record.items() if key not in _NOT_COLUMNS}
        further = {carried_name(key): value for key, value in record.get("extra", {}).items()}
        row |= {key: None if value is None else str(value) for key, value in further.items()}
        row |= {**shared, "device": device, "gpu_seconds": seconds * tried[record["id"], record["replicate"]]}
        if record["file"] is not None:
            archive = record.get("archive")
            row["file"] = str((place.path / (archive or record["file"])).relative_to(root))
            row["member"] = record["file"] if archive else None
        manifest.append(row)
    return manifest, [{**attempt, **shared, "gpu_seconds": seconds} for attempt in attempts]


# what a block's record has beside the table's columns
_NOT_COLUMNS = {"extra", "item_fingerprint", "archive", "dicom_bytes", "dicom_offset"}


def _table(rows: Sequence[Record], types: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    further = sorted({key for row in rows for key in row} - types.keys())
    schema = pa.schema([(name, pa.type_for_alias(types.get(name, "string"))) for name in (*types, *further)])
    return pa.Table.from_arrays([pa.array([row.get(f.name) for row in rows], f.type) for f in schema], schema=schema)


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def merge(sources: Iterable[Path], target: Path) -> int:
    """Write the rows of Parquet files, in order, to one; return how many. Holds one of them in memory at a time.

    A column that some of them lack is null in their rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = list(sources)
    schemas = []
    for file in files:
        try:
            schemas.append(pq.read_schema(file))
        except (OSError, pa.ArrowException) as error:
            reason = f"damaged ({str(error).splitlines()[0]}); delete it and run its task again"
            raise InputError(file, reason) from None
    schema = pa.unify_schemas(schemas) if files else pa.schema([])
    rows = 0
    disk.make_directory(target.parent)
    temporary = disk.temporary_sibling(target)
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for file in files:
                table = fitted(pq.read_table(file), schema)
                writer.write_table(table)
                rows += len(table)
        disk.publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema`; those that it lacks are null."""
    import pyarrow as pa

    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names)


def shard_directories(
    directory: CampaignDirectory, modes: Sequence[str], shards: Sequence[tuple[str, tuple[int, int]]]
) -> Iterator[Path]:
    """Where the tables of all shards, (modality, blocks) each, are: mode by mode."""
    for mode in modes:
        for modality, blocks in shards:
            yield directory.shard(mode, modality, blocks)
