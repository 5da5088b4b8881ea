"""The table of sessions: everything raters answered and what they were shown, a row for each answer.

`sessions.parquet` is the record of a rating; the ratings' and the pairs' tables and every figure are made from it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn import disk
from medsyn.data.tables.pairs import Preferred
from medsyn.errors import InputError
from medsyn.rating.formats import Answer, Answers, Choice, Origin, SetKey

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SESSIONS_TABLE = "sessions.parquet"
CASE, PAIR = "case", "pair"
_RATINGS = b"ratings"  # in the table's metadata

_TEXT = (
    *("set", "version", "rater", "started_at", "exported_at", "answered_at", "kind", "item", "preferred", "note"),
    *("light", "repeat_of", "modality", "prompt", "prompt_id", "mode"),
    *("source", "file", "member", "sha256", "file_b", "member_b", "sha256_b", "prompt_b"),
)
_WHOLE = (
    *("expert_level", "order", "serial", "changes", "rating", "confidence"),
    *("window_low", "window_high", "zoom", "volume", "volume_b", "replicate", "attempt"),
)
_REAL = ("seconds", "selector", "policy")
_YES = ("not_sure", "decoy", "accepted", "dark_patch", "bright_patch")


def schema() -> pa.Schema:
    """The columns of `sessions.parquet`; docs/rating.md says what they mean."""
    import pyarrow as pa

    types = ((_TEXT, pa.string()), (_WHOLE, pa.int64()), (_REAL, pa.float64()), (_YES, pa.bool_()))
    return pa.schema([(name, kind) for names, kind in types for name in names] + [("defects", pa.list_(pa.string()))])


def rows_of(answers: Answers, key: SetKey) -> list[dict[str, Any]]:
    """The rows of a file of answers whose names are all in `key`, in the rater's order."""
    session = {
        "set": answers.set.hash,
        "version": answers.version,
        "rater": answers.rater.id,
        "expert_level": answers.rater.expert_level,
        "started_at": answers.started_at,
        "exported_at": answers.exported_at,
        "light": answers.display.light,
        "dark_patch": answers.display.dark_patch,
        "bright_patch": answers.display.bright_patch,
    }
    ordered = sorted(answers.answers, key=lambda answer: answer.order)
    return [session | _answered(answer) | _meant(answer, key) for answer in ordered]


def _answered(answer: Answer) -> dict[str, Any]:
    taken = ("item", "order", "serial", "changes", "rating", "not_sure", "confidence", "note", "zoom", "answered_at")
    return {
        **{name: getattr(answer, name) for name in taken},
        "defects": answer.defects,
        "seconds": answer.milliseconds / 1000,
        "window_low": answer.window.low,
        "window_high": answer.window.high,
    }


def _meant(answer: Answer, key: SetKey) -> dict[str, Any]:
    """What the opaque names of an answer stand for."""
    if case := key.cases.get(answer.item):
        about = {"kind": CASE, "decoy": case.decoy, "repeat_of": case.repeat_of}
        return about | _of_image(key.images[case.image])
    first, second = key.pairs[answer.item]
    left_is_first = answer.shown[0] == first
    other = key.images[second]
    return {
        "kind": PAIR,
        "decoy": False,
        "preferred": None if answer.choice is None else _preferred(answer.choice, left_is_first),
        **_of_image(key.images[first]),
        **{f"{name}_b": getattr(other, name) for name in ("file", "member", "sha256", "volume", "prompt")},
    }


def _preferred(choice: Choice, left_is_first: bool) -> Preferred:
    if choice in ("left", "right"):
        return "a" if (choice == "left") == left_is_first else "b"
    return "same" if choice == "same" else "neither"


def _of_image(origin: Origin) -> dict[str, Any]:
    return {("source" if name == "kind" else name): value for name, value in origin.model_dump().items()}


def write_sessions(path: Path, rows: Iterable[Mapping[str, Any]], ratings: str = "ratings.csv") -> None:
    """Write the table, with the name of the ratings' table that belongs to it; the same rows give the same bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema().with_metadata({_RATINGS: ratings}))
    parquet.write_table(table, stream, compression="zstd")
    disk.write_atomic(path, stream.getvalue())


def ratings_beside(path: Path) -> str:
    """The name of the ratings' table that was written with a table of sessions, which can be read."""
    from pyarrow import parquet

    metadata = parquet.read_schema(path).metadata or {}
    return str(metadata.get(_RATINGS, b"ratings.csv").decode())


def read_sessions(path: Path) -> pd.DataFrame:
    """The table as pandas reads it, with missing whole numbers and truth values as NA.

    Args:
        path: `sessions.parquet`, or anything that lies beside it: `ratings.csv`, the folder.

    Raises:
        InputError: it is not there, or is no such table.
    """
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    file = path if path.suffix == ".parquet" else (path if path.is_dir() else path.parent) / SESSIONS_TABLE
    if not file.is_file():
        reason = (
            f"there is no {SESSIONS_TABLE} here: `medsyn rate import ANSWERS --key KEY --out ratings.csv` writes it"
        )
        raise InputError(file, reason)
    try:
        table = parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(file, f"cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    missing = [name for name in schema().names if name not in table.column_names]
    if missing:
        raise InputError(file, f"is not a table of sessions: there is no column {missing[0]!r}")
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame
