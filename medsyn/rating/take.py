"""From files of answers to a campaign's tables: check, merge, write; from exports of Label Studio as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsyn.errors import InputError, InputProblems, Problem
from medsyn.rating.collect import collect
from medsyn.rating.label_studio import read_export
from medsyn.rating.sessions import SESSIONS_TABLE, read_sessions, write_sessions
from medsyn.rating.tables import write_ratings, write_tables


@dataclass(frozen=True)
class Taken:
    """What was written."""

    raters: int
    answers: int
    ratings: int
    pairs: int
    warnings: list[Problem]


def take(
    files: Sequence[Path], keys: Sequence[Path], out: Path, root: Path | None = None, with_decoys: bool = False
) -> Taken:
    """Write `out`, and `pairs.csv` and `sessions.parquet` beside it, from all files of answers.

    The tables are a function of the files: the same files write the same bytes. Sessions that are there already must
    be among the files, so that nobody's answers are lost.

    Args:
        files: of answers, as the page saves them; finished or not.
        keys: of their sets.
        out: the ratings' table.
        root: the data directory that image paths are relative to; that of `out` unless given.
        with_decoys: whether the ratings of real images that were mixed in are written, too.

    Raises:
        InputError: there are sessions that are not among the files, or tables that this did not write.
        InputProblems: see `collect` and `write_tables`.
    """
    data = (root or out.parent).absolute()
    if not out.absolute().is_relative_to(data):
        raise InputError(out, f"is outside of the data directory {data}, to which image paths are relative (--root)")
    rows, warnings = collect(files, keys)
    _require_nothing_lost(out, {(row["set"], row["rater"]) for row in rows})
    ratings, pairs = write_tables(out, data, rows, with_decoys)
    write_sessions(out.with_name(SESSIONS_TABLE), rows)
    return Taken(len({row["rater"] for row in rows}), len(rows), ratings, pairs, warnings)


def take_exports(
    files: Sequence[Path], images: Path, out: Path, levels: Mapping[str, int], root: Path | None = None
) -> Taken:
    """Write `out` from exports of Label Studio.

    Args:
        files: the exports.
        images: the folder that images were uploaded from, in the data directory.
        out: the ratings' table.
        levels: expert levels by the annotators' names; 1 for all others.
        root: the data directory; that of `out` unless given.

    Raises:
        InputError, InputProblems: see `medsyn.rating.label_studio.read_export`; or the images are elsewhere, or a level
            is of nobody.
    """
    data = (root or out.parent).absolute()
    for place, key in ((out, "--root"), (images, "--images")):
        if not place.absolute().is_relative_to(data):
            raise InputError(key, f"{place} is outside of the data directory {data}, to which image paths are relative")
    rated = [one for file in files for one in read_export(file, images.absolute())]
    raters = {one.rater for one in rated}
    if unknown := [name for name in levels if name not in raters]:
        raise InputError("--expert-level", f"there is no rater {unknown[0]!r}; there are {', '.join(sorted(raters))}")
    if out.exists():
        raise InputError(out, "is there already: choose another name for --out, or move it away")
    write_ratings(
        out,
        [
            (
                *(one.file.relative_to(data).as_posix(), one.rating, one.modality, levels.get(one.rater, 1)),
                *(one.prompt, "", one.rater),
            )
            for one in rated
        ],
    )
    return Taken(len(raters), len(rated), len(rated), 0, [])


def _require_nothing_lost(out: Path, given: set[tuple[str, str]]) -> None:
    if not out.with_name(SESSIONS_TABLE).exists():
        if out.exists():
            raise InputError(out, "is there already, and was not written by an import: choose another name for --out")
        return
    before = read_sessions(out)
    there = set(zip(before["set"], before["rater"], strict=True))
    lost = sorted({rater for _, rater in there - given})
    if lost:
        problems = [
            Problem(str(out), f"has answers of {rater} that are not among the files: give them, too") for rater in lost
        ]
        raise InputProblems(problems)
