"""Check that the tables of the shards and of the campaign match the blocks' own files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.generation.verify.finding import Finding
from medsyn.generation.write.parquet import ATTEMPTS_TABLE, MANIFEST_TABLE, Rows, fitted, shard_tables
from medsyn.text import counted

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLES = (MANIFEST_TABLE, ATTEMPTS_TABLE)
_ROWS_AT_ONCE = 4096


def check_shard_tables(folder: Path, rows: Rows | None, is_unfinished: bool = False) -> Iterator[Finding]:
    """Check that a shard's two tables exist and have exactly these rows.

    Args:
        folder: the tables'.
        rows: what they should hold; None: the shard's blocks cannot be read.
        is_unfinished: the shard's task is not done, so that a table may be missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        expected = shard_tables(*rows) if rows is not None else {}
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        expected = {}  # a value of a damaged block fits no column; the block has been reported
    for name in TABLES:
        path = folder / name
        if is_unfinished and not os.path.lexists(path):
            continue
        if path.exists() and not path.is_file():  # opening a pipe would wait
            yield Finding(path, "is not a file; running the task again rewrites it", path)
            continue
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException):
            yield Finding(path, "is missing or damaged; running the task again rewrites it", path)
            continue
        if name in expected and (what := _difference(table, expected[name])):
            yield Finding(path, f"does not match the files of its blocks ({what})", path)


def _difference(found: pa.Table, expected: pa.Table) -> str | None:
    if found.equals(expected):
        return None
    if len(found) != len(expected):
        return f"{counted(len(found), 'row')}, not {len(expected)}"
    if found.schema != expected.schema:
        return "different columns"
    names = [name for name in expected.column_names if not found[name].equals(expected[name])]
    return f"different values in {', '.join(names)}"


def check_merged_table(merged: Path, sources: Sequence[Path]) -> Iterator[Finding]:
    """Check that a table of the campaign, if it exists, has the rows of its shards' tables, one shard at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not merged.exists():
        return
    if not merged.is_file():
        yield Finding(merged, "is not a file; `medsyn merge` rewrites it", merged)
        return
    try:
        with pq.ParquetFile(merged) as file:
            rows, schema = _Rows(file), file.schema_arrow
            present = [source for source in sources if source.is_file()]
            same = schema.equals(pa.unify_schemas([pq.read_schema(source) for source in present]))
            for source in present if same else ():
                table = fitted(pq.read_table(source), schema)
                same = same and rows.take(len(table)).equals(table)
            if not same or len(rows.take(1)):
                yield Finding(merged, "does not match the shards' tables; `medsyn merge` rewrites it", merged)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:100]
        yield Finding(merged, f"cannot be compared with the shards' tables ({reason})", merged)


class _Rows:
    """The rows of a Parquet file, in order, a few at a time."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._batches = file.iter_batches(batch_size=_ROWS_AT_ONCE)
        self._rest = file.schema_arrow.empty_table()

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, or as many as there are."""
        import pyarrow as pa

        parts = [self._rest]
        while sum(map(len, parts)) < count and (batch := next(self._batches, None)) is not None:
            parts.append(pa.Table.from_batches([batch]))
        table = pa.concat_tables(parts)
        self._rest = table.slice(count)
        return table.slice(0, count)
