"""From a prompt list's file to (row, {column: value}), one row at a time: CSV, JSON lines, Parquet, plain text.

Known columns are found by name, ignoring case; all others are passthrough columns under the file's names. One that is
most likely a misspelt known column refuses the file: its values would be passed through and have no effect.

A passthrough column keeps its name in the tables of generated images, unless they have a column of that name (ignoring
case): then it is `prompt_<name>`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.data.tables.csv_rows import (
    MOST_COLUMNS,
    check_text_file,
    column_places,
    csv_rows,
    is_for_excel,
    require_file,
    same_name,
    text_lines,
    too_many_columns,
)
from medsyn.data.tables.identifiers import may_identify
from medsyn.data.tables.row_errors import Faults, show
from medsyn.errors import InputError
from medsyn.records import RESERVED
from medsyn.text import closest

COLUMNS = ("id", "prompt", "modality", "n", "seed", "num_inference_steps", "guidance_scale", "negative_prompt")
MOST_PASSTHROUGH_COLUMNS = 64
MOST_LETTERS = 100  # of a column's name
INDEX = "index.json"  # of a campaign's own lists

Records = Iterator[tuple[int, Mapping[str, Any]]]

_MEANT = {
    "text": "prompt",
    "caption": "prompt",
    "promptid": "id",
    "modal": "modality",
    "imgnum": "n",
    "numimages": "n",
    "replicates": "n",
    "steps": "num_inference_steps",
    "numsteps": "num_inference_steps",
    "inferencesteps": "num_inference_steps",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfgscale": "guidance_scale",
    "negative": "negative_prompt",
}
_LONG_PIECE = re.compile(r'[^",\r\n]{20000,}')


def read_records(path: Path, faults: Faults, keep: Collection[str] = ()) -> Records:
    """The rows of a prompt list, numbered as the file's lines are (Parquet: as its rows, from 1).

    Args:
        path: the file.
        faults: receives the errors.
        keep: columns that are passed through although they seem to identify patients.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    if path.name == INDEX:  # a campaign's own lists: each line says its modality
        for file in sorted(path.parent.glob("*.jsonl")):
            yield from _json_lines(file, _Names(faults, keep))
        return
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(path, f"a prompt list must be a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    yield from reader(path, _Names(faults, keep))


class _Names:
    """The names of the columns of one file."""

    def __init__(self, faults: Faults, keep: Collection[str]) -> None:
        self.faults = self._faults = faults
        self._keep = {name.casefold() for name in keep}
        self._known: dict[str, str] = {}  # as written -> the name used here; "" if ignored

    def translate(self, row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record under the names used here."""
        known = self._known
        if len(record) > MOST_COLUMNS:
            raise InputError(self._faults.source, too_many_columns(len(record)), row)
        for written in record:
            if written not in known:
                known[written] = self._name(row, written, record)
        translated = {known[written]: value for written, value in record.items() if known[written]}
        if len(translated) != len(record):
            self._report_twins(row, record)
        return translated

    def _name(self, row: int, written: str, among: Iterable[str]) -> str:
        name = written.strip()
        if name.casefold() in COLUMNS:
            return name.casefold()
        if not name.isprintable() or len(name) > MOST_LETTERS:
            self._faults.refuse_file(row, None, f"{ascii(name)[:100]} is not a valid column name")
            return ""
        if not name:
            self._faults.warn(row, None, "a column without a name is ignored")
            return ""
        if name.casefold() not in self._keep and may_identify(name):
            reason = "is not passed through to the images: it may identify patients"
            self._faults.warn(row, name, f"{reason}; if it does not, name it in data.keep_columns")
            return ""
        present = {other.strip().casefold() for other in among}
        meant = meant_column(name)
        if meant is not None and meant not in present:
            self._faults.refuse_file(row, name, f"is not a known column; rename it to {show(meant)} or otherwise")
        elif sum(other not in COLUMNS for other in self._known.values()) == MOST_PASSTHROUGH_COLUMNS:
            reason = f"there are more than {MOST_PASSTHROUGH_COLUMNS} passthrough columns"
            raise InputError(self._faults.source, reason, row, name)
        self._report_clash(row, name)
        return name

    def _report_clash(self, row: int, name: str) -> None:
        """Refuse a list in which two passthrough columns would have the same name in the tables of images."""
        further = [other for other in self._known.values() if other and other not in COLUMNS]
        if other := clash(name, further):
            reason = f"it and {show(other)} would both be called {show(passthrough_name(name))} in the tables of images"
            self._faults.refuse_file(row, name, f"{reason}; rename one of them")

    def _report_twins(self, row: int, record: Mapping[str, Any]) -> None:
        names = [self._known[written] for written in record if self._known[written]]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            self._faults.refuse_file(row, name, same_name(names.count(name)))


def meant_column(name: str) -> str | None:
    """The known column that a column of a different name was most likely meant to be."""
    squeezed = {re.sub(r"[\W_]", "", column): column for column in COLUMNS}
    key = re.sub(r"[\W_]", "", name.casefold())
    if key in squeezed:
        return squeezed[key]
    close = closest(key, [column for column in squeezed if len(column) > 2], cutoff=0.86)
    return squeezed[close] if close else _MEANT.get(key)


def _csv(path: Path, names: _Names) -> Records:
    check_text_file(path, allow_nul=True)
    faults = names.faults

    def columns(header: list[str]) -> dict[str, int]:
        _check_header(faults, header)
        return names.translate(1, {name: place for place, name in enumerate(header)})

    # longer than any field may be, but short enough for the csv module: the row is reported, with its column
    lines = (_LONG_PIECE.sub(lambda match: match[0][:20000], line) for line in text_lines(path))
    yield from csv_rows(faults, lines, columns)


def _check_header(faults: Faults, header: Sequence[str]) -> None:
    """Refuse a header with a repeated name or without `prompt`; suggest the column that may have been meant."""
    for name in dict.fromkeys(name for name in header if name.strip() and header.count(name) > 1):
        faults.refuse_file(1, name, same_name(header.count(name)))
    try:
        column_places(faults.source, header, ("prompt",), (), {})
    except InputError as error:
        problem = error.problem
        meant = next((name.strip() for name in header if meant_column(name) == "prompt"), None)
        if meant is None or "rename" in problem.reason or problem.key != "prompt":
            raise
        reason = f"{problem.reason}; rename {show(meant)} to 'prompt'"
        raise InputError(problem.source, reason, problem.row, problem.key) from None


def _json_lines(path: Path, names: _Names) -> Records:
    check_text_file(path, allow_nul=True)
    faults = names.faults
    for row, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = disk.from_json(line)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply, or too long a number"
            faults.error(row, None, f"is not JSON: {reason}; every line must be an object such as {_EXAMPLE}")
            continue
        if not isinstance(record, dict):
            faults.error(row, None, f"is JSON, but not an object; every line must be one, such as {_EXAMPLE}")
            continue
        yield row, names.translate(row, record)


_EXAMPLE = '{"prompt": "CT: normal", "modality": "CT"}'


def _parquet(path: Path, names: _Names) -> Records:
    require_file(path)
    try:
        from pyarrow import ArrowException, parquet  # takes a second; only Parquet needs it
    except ImportError:
        reason = "needs pyarrow, which is not installed here; write the list as CSV or JSON lines"
        raise InputError(path, reason) from None

    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            if len(file.schema_arrow.names) > MOST_COLUMNS:
                raise InputError(path, too_many_columns(len(file.schema_arrow.names)))
            _check_header(names.faults, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    row += 1
                    yield row, names.translate(row, record)
    except (ArrowException, OSError) as error:
        reason = f"cannot be read as Parquet after row {row}: {str(error).splitlines()[0]}"
        raise InputError(path, reason) from None


def _text(path: Path, names: _Names) -> Records:
    check_text_file(path, allow_nul=True)
    for row, line in enumerate(text_lines(path, newline=None), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield row, {"prompt": line.strip()}


_READERS: dict[str, Callable[[Path, _Names], Records]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".txt": _text,
}
SUFFIXES = tuple(_READERS)


def passthrough_name(column: str) -> str:
    """The name of a passthrough column in the tables."""
    return f"prompt_{column}" if column.casefold() in RESERVED else column


def clash(column: str, others: Iterable[str]) -> str | None:
    """The one of `others` that would have the same name in the tables as `column`, or None."""
    name = passthrough_name(column).casefold()
    return next((other for other in others if other != column and passthrough_name(other).casefold() == name), None)


def table_kind(path: Path) -> str:
    """`dataset`, `ratings`, `pairs` or `prompts`: see `taken_for`."""
    return taken_for(path)[0]


def taken_for(path: Path) -> tuple[str, str]:
    """`dataset`, `ratings`, `pairs` or `prompts`, by the columns in the first line, and why.

    A file that is not CSV is a prompt list, but for an imagefolder's. A table that is none of them counts as a data
    set, whose reader reports what is missing.
    """
    suffix = path.suffix.lower()
    is_list = suffix in SUFFIXES and suffix != ".csv"
    try:
        require_file(path)  # opening a pipe waits for its other end
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            lines = iter(lambda: stream.readline(1 << 16), "")
            line = next((line for line in lines if line.strip() and not is_for_excel(line)), "")
        columns = {name.strip().casefold() for fields in csv.reader([line]) for name in fields}
    except (InputError, OSError, csv.Error):
        columns, line = set(), ""
    if is_list:
        of_images = suffix == ".jsonl" and '"file_name"' in line and '"prompt"' not in line
        return ("dataset", "it has 'file_name'") if of_images else ("prompts", f"it is a {suffix} file")
    if found := columns & {"image_a", "image_b", "preferred"}:
        return "pairs", f"it has a column {show(min(found))}"
    if found := columns & {"rating", "image_path"}:
        return "ratings", f"it has a column {show(min(found))}"
    if "path" in columns or "prompt" not in columns:
        return "dataset", "it has a column 'path'" if "path" in columns else "it has no column 'prompt' or 'rating'"
    return "prompts", "it has a column 'prompt' and no 'path'"
