"""From a table's file to the fields of its rows: encoding, header, delimiter, quotes."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medsyn.data.tables.row_errors import Faults, show
from medsyn.errors import InputError
from medsyn.text import and_more, closest

MOST_COLUMNS = 1000
_NOT_CSV = (".json", ".jsonl", ".parquet", ".tsv", ".xls", ".xlsx", ".ods")
_TABLES = (".csv", ".jsonl", ".parquet", ".txt")
_CONTENTS = "make one with the columns path, Text and modality (docs/data.md, 'The data set')"
_CONVERSIONS = "docs/data.md, 'From other programs', converts it"
_UTF8 = f"save it as 'CSV UTF-8', or {_CONVERSIONS}"
_IMAGEFOLDER = f"an imagefolder's list (file_name, text) needs path, Text and modality: {_CONVERSIONS}"


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def require_file(path: Path) -> None:
    """Raise `InputError` if there is no such file, or if reading it may never end: a pipe, a device."""
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "there is no such file"
        raise InputError(path, _directory(path) if path.is_dir() else reason)


def _directory(path: Path) -> str:
    """What to give instead of a directory."""
    try:
        tables = sorted(child.name for child in path.iterdir() if child.suffix.lower() in _TABLES)
    except OSError as error:
        return f"is a directory that cannot be listed: {error.strerror}"
    if not tables:
        return f"is a directory, not a table; there is none in it: {_CONTENTS}"
    return f"is a directory, not a table: give {and_more([show(str(path / name)) for name in tables], 3)}"


def require_csv(path: Path) -> None:
    """Raise `InputError` for a file of another format than that of data sets and ratings."""
    suffix = path.suffix.lower()
    if suffix in _NOT_CSV:
        reason = f"is a {suffix} file, and data sets and ratings are CSV files with commas and a header"
        ways = {
            ".tsv": f": {_UTF8}",
            ".jsonl": f"; {_IMAGEFOLDER}",
            ".json": f"; of an export of Label Studio, {_CONVERSIONS}",
        }
        raise InputError(path, reason + ways.get(suffix, ": save it as 'CSV UTF-8'"))


def _written_by(header: Sequence[str]) -> str:
    """The end of a message about a header that another program writes."""
    if {"annotation_id", "annotator"} <= set(header):
        return f"; it is an export of Label Studio: {_CONVERSIONS}"
    return f"; {_IMAGEFOLDER}" if "file_name" in header else ""


def check_text_file(path: Path, allow_nul: bool = False) -> None:
    """Read the file once, line by line, and raise `InputError` if it is not UTF-8 text or is blank."""
    require_file(path)
    blank, nul, first_broken, broken = True, 0, 0, 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise InputError(path, f"is UTF-16, not UTF-8; {_UTF8}", row=1)
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not _is_utf8(line):
                    first_broken, broken = first_broken or number, broken + 1
                elif blank:
                    blank = not line.decode().strip()
                if not nul and b"\0" in line:
                    nul = number
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    if broken:
        where = "here" if broken == 1 else f"here and on {broken - 1} more lines"
        raise InputError(path, f"is not UTF-8 {where}; {_UTF8}", row=first_broken)
    if blank:
        raise InputError(path, "is empty")
    if nul and not allow_nul:
        raise InputError(path, f"contains a NUL byte; if it is UTF-16, {_UTF8}", row=nul)


def text_lines(path: Path, newline: str | None = "") -> Iterator[str]:
    """The lines of a file that `check_text_file` has passed, with their ends as `open` treats `newline`."""
    with path.open(encoding="utf-8-sig", newline=newline) as stream:
        yield from stream


def is_for_excel(line: str) -> bool:
    """Whether a line before the header only tells Excel that commas separate the columns."""
    return line.strip().strip('"').casefold() == "sep=,"


def too_many_columns(count: int) -> str:
    """What is wrong with a table of so many columns."""
    return f"there are {count} columns, and at most {MOST_COLUMNS} may be: are rows and columns exchanged?"


def same_name(count: int) -> str:
    """What is wrong with several columns of one name."""
    return f"{count} columns have this name; keep one, and remove or rename the others"


def column_places(
    source: str, header: Sequence[str], required: Sequence[str], optional: Sequence[str], settings: Mapping[str, str]
) -> dict[str, int]:
    """Where each known column is; raises `InputError` naming those missing, those found, and the way out."""
    seen = [name.strip() for name in header]
    if mark := _other_delimiter(seen, required):
        one = f"there is only one column, {show(seen[0])}: " if len(seen) == 1 else ""
        raise InputError(source, f"{one}separate by commas, not {mark!r} ({_CONVERSIONS})", row=1)
    places: dict[str, int] = {}
    for column in (*required, *optional):
        exact = [place for place, name in enumerate(seen) if name == column]
        found = exact or [place for place, name in enumerate(seen) if name.casefold() == column.casefold()]
        if len(found) > 1:
            raise InputError(source, same_name(len(found)), row=1, key=column)
        if found:
            places[column] = found[0]
    missing = [column for column in required if column not in places]
    if missing:
        reason = f"there is no column {', '.join(map(show, missing))}; the columns found are "
        reason += ", ".join(map(show, seen[:12])) + (", ..." if len(seen) > 12 else "")
        if len(missing) == len(required):
            reason += f"; the first line must be the header: {','.join(required)}"
        for column in missing:
            if close := closest(column, seen):
                way_out = f"pass {settings[column]}={close} or " if column in settings else ""
                reason += f"; {way_out}rename {show(close)} to {show(column)}"
            elif column in settings:
                reason += f"; {settings[column]} says so"
        raise InputError(source, reason + _written_by(seen), row=1, key=", ".join(missing))
    return places


def _other_delimiter(header: Sequence[str], required: Sequence[str]) -> str | None:
    """What separates the columns instead of commas; a name may hold a comma."""
    for mark in ";\t|":
        names = {name.strip().casefold() for name in ",".join(header).split(mark)}
        if mark in header[0] and (len(header) == 1 or names & {column.casefold() for column in required}):
            return mark
    return None


def csv_rows(
    faults: Faults, lines: Iterable[str], columns: Callable[[list[str]], Mapping[str, int]]
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, its values by column, stripped) for every row.

    Rows with broken quotes, or with a different number of fields than the header, are reported as they come, and the
    file is refused at its end: if the fields of one row are split wrongly, those of no row can be trusted.

    Args:
        faults: receives the errors.
        lines: of the file.
        columns: which columns are wanted and where they are, given the header; may raise `InputError`.
    """
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    width = 0
    places: Mapping[str, int] = {}
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "this one is never closed" if "end of data" in str(error) else str(error)
            reason = f"the quotes are broken: {what}; write a quote inside a text as two"
            if not width:
                raise InputError(faults.source, reason, row=line) from None
            faults.refuse_file(line, None, reason)
            continue
        if len(fields) < 2 and not "".join(fields).strip():
            continue
        if not width and is_for_excel(",".join(fields)):
            continue
        if not width:
            if len(fields) > MOST_COLUMNS:
                raise InputError(faults.source, too_many_columns(len(fields)), row=line)
            width, places = len(fields), columns(fields)
        elif len(fields) != width:
            hint = "; a text with commas must be in double quotes" if len(fields) > width else ""
            faults.refuse_file(line, None, f"{len(fields)} fields, {width} expected{hint}")
        else:
            yield line, {column: fields[place].strip() for column, place in places.items()}


def csv_records(
    faults: Faults,
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """(line, values of the required and optional columns) for every row; '' for a column that is absent.

    `settings` says which configuration key names a column. The faults are those of `csv_rows` and `column_places`.
    """
    rows = csv_rows(
        faults,
        text_lines(path),
        lambda header: column_places(faults.source, header, required, optional, settings or {}),
    )
    for line, row in rows:
        yield line, [row.get(column, "") for column in (*required, *optional)]
