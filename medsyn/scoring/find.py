"""Which files are meant: images by their names, all those below folders, and those that a pattern matches."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from medsyn.data.tables.data_folder import IMAGE_SUFFIXES
from medsyn.errors import Problem

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx")
_PREAMBLE = 128  # bytes before DICOM's mark


def find_images(given: Iterable[str | Path], problems: list[Problem]) -> list[str]:
    """The files that names, folders and patterns stand for, each once, in the order given and below a folder sorted.

    Args:
        given: what is wanted. Below a folder, files with the name of an image are meant, and DICOM files of any name;
            what starts with a dot is not.
        problems: what stands for no file is added.
    """
    found: dict[str, str] = {}
    for name in [os.fspath(one) for one in given]:
        before = len(found)
        for path in _expanded(name):
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (Path.absolute keeps '..')
        if len(found) == before and not any(True for _ in _expanded(name)):
            problems.append(Problem(name, _why_none(name)))
    return list(found.values())


def _expanded(name: str) -> Iterator[str]:
    if os.path.isdir(name):  # noqa: PTH112
        yield from _below(name)
    elif os.path.lexists(name):
        yield name
    elif glob.has_magic(name):
        for match in sorted(glob.iglob(name, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            yield from _below(match) if Path(match).is_dir() else [match]


def _below(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for file in sorted(files):
            path = os.path.join(place, file)  # noqa: PTH118 (a hundred thousand of them)
            if not file.startswith(".") and (file.lower().endswith(IMAGE_SUFFIXES) or _is_dicom(path)):
                yield path


def _is_dicom(path: str) -> bool:
    """Whether a file without the name of an image is one all the same: archives export `IM000001`."""
    if "." in Path(path).name and not Path(path).suffix[1:].isdecimal():
        return False
    try:
        with Path(path).open("rb") as stream:
            return stream.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def _why_none(name: str) -> str:
    if Path(name).is_dir():
        return f"there is no image in it; files of {', '.join(IMAGE_SUFFIXES)} are looked for"
    return "matches no file" if glob.has_magic(name) else "there is no such file or folder"


def is_table(name: str | Path) -> bool:
    """Whether a name is that of a table and not of an image."""
    return os.fspath(name).lower().endswith(_TABLES)
