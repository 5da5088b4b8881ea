"""From a table's file to the fields of its rows: encoding, header, delimiter, quotes."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medsyn.data.faults import Faults, show
from medsyn.errors import InputError


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """The table's text; raises `InputError` if it is no UTF-8 text file."""
    if not path.is_file():
        raise InputError(path, "is a folder, not a table" if path.is_dir() else "there is no such file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(path, "is UTF-16, not UTF-8; save it as 'CSV UTF-8'", row=1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        lines = [number for number, line in enumerate(content.split(b"\n"), 1) if not _is_utf8(line)]
        where = "here" if len(lines) == 1 else f"here and on {len(lines) - 1} further lines"
        raise InputError(path, f"is not UTF-8 {where}; save it as 'CSV UTF-8'", row=lines[0]) from None
    if not text.strip():
        raise InputError(path, "is empty")
    return text


def _columns(
    source: str, header: Sequence[str], required: Sequence[str], optional: Sequence[str], settings: Mapping[str, str]
) -> list[int | None]:
    """Where each column is; raises `InputError` naming the columns that are missing, those seen, and the way out."""
    seen = [name.strip() for name in header]
    mark = next((mark for mark in ";\t|" if mark in seen[0]), None)
    if len(seen) == 1 and mark:
        raise InputError(source, f"one column is seen, {show(seen[0])}: write commas, not {mark!r}", row=1)
    places: list[int | None] = []
    for column in (*required, *optional):
        exact = [place for place, name in enumerate(seen) if name == column]
        found = exact or [place for place, name in enumerate(seen) if name.casefold() == column.casefold()]
        if len(found) > 1:
            raise InputError(source, f"there are {len(found)} columns of this name", row=1, key=column)
        places.append(found[0] if found else None)
    missing = [column for column, place in zip(required, places, strict=False) if place is None]
    if missing:
        reason = f"there is no column {', '.join(map(show, missing))}; the columns seen are "
        reason += ", ".join(map(show, seen[:12])) + (", ..." if len(seen) > 12 else "")
        if len(missing) == len(required):
            reason += f"; the first line must be the header: {','.join(required)}"
        for column in missing:
            for close in difflib.get_close_matches(column, seen, n=1):
                way_out = f"pass {settings[column]}={close} or " if column in settings else ""
                reason += f"; {way_out}rename {show(close)} to {show(column)}"
        raise InputError(source, reason, row=1, key=", ".join(missing))
    return places


def csv_records(
    faults: Faults,
    text: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """(line, its required and optional columns' values, stripped) for every row; '' where there is no such column.

    Rows with broken quotes or another number of fields than the header are told as they come, and the file is refused
    in the end: where one row's fields are cut wrongly, no row's can be trusted. `settings` says which configuration
    key names a column.
    """
    if "\0" in text:
        raise InputError(faults.source, "holds a NUL byte", row=text.count("\n", 0, text.index("\0")) + 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    width = 0
    places: list[int | None] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "this one is never closed" if "end of data" in str(error) else str(error)
            reason = f"the quotes are broken: {what}; a quote inside a text is written as two"
            if not places:
                raise InputError(faults.source, reason, row=line) from None
            faults.refuse_file(line, None, reason)
            continue
        if len(fields) < 2 and not "".join(fields).strip():
            continue
        if not places:
            width, places = len(fields), _columns(faults.source, fields, required, optional, settings or {})
        elif len(fields) != width:
            hint = "; a text that has commas must be in double quotes" if len(fields) > width else ""
            faults.refuse_file(line, None, f"{len(fields)} fields, {width} expected{hint}")
        else:
            yield line, ["" if place is None else fields[place].strip() for place in places]


def text_records(faults: Faults, text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, [prompt, no modality, no id]) for every line of a text file that is neither blank nor a comment."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if "\0" in line:
            faults.error(number, None, "holds a NUL byte")
        elif line.strip() and not line.lstrip().startswith("#"):
            yield number, [line.strip(), "", ""]
