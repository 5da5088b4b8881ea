"""From files of answers to a campaign's tables: check, merge, write; from exports of Label Studio as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.rating.collect import collect
from medsyn.rating.label_studio import read_export
from medsyn.rating.sessions import SESSIONS_TABLE, ratings_beside, read_sessions
from medsyn.rating.tables import PAIRS_TABLE, write_ratings, write_tables
from medsyn.text import counted


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
    be among the files, as new as they are there, so that nobody's answers are lost.

    Args:
        files: of answers, as the page saves them; finished or not.
        keys: of their sets.
        out: the ratings' table.
        root: the data directory that image paths are relative to; that of `out` unless given.
        with_decoys: whether the ratings of real images that were mixed in are written, too.

    Raises:
        InputError: there are tables that this did not write.
        InputProblems: there are answers that are not among the files; see `collect` and `write_tables`, too.
    """
    out, data = disk.absolute(str(out)), disk.absolute(str(root or out.parent))
    if not out.is_relative_to(data):
        raise InputError(out, f"is outside of the data directory {data}, to which image paths are relative (--root)")
    rows, warnings = collect(files, keys)
    _require_own_tables(out)
    _require_nothing_lost(out, rows)
    ratings, pairs = write_tables(out, data, rows, with_decoys)
    warnings += _without_prompt(out, rows)
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
    out, images, data = (disk.absolute(str(path)) for path in (out, images, root or out.parent))
    for place, key in ((out, "--root"), (images, "--images")):
        if not place.is_relative_to(data):
            raise InputError(key, f"{place} is outside of the data directory {data}, to which image paths are relative")
    rated = [one for file in files for one in read_export(file, images)]
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
                *(one.prompt, "", one.rater, None),
            )
            for one in rated
        ],
    )
    return Taken(len(raters), len(rated), len(rated), 0, [])


def _without_prompt(out: Path, rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """A warning about rated images that nobody has said a prompt of."""
    without = len({row["sha256"] for row in rows if row["rating"] is not None and not row["prompt"].strip()})
    if not without:
        return []
    reason = (
        f"has ratings of {counted(without, 'image')} without a prompt, which no campaign can be trained on: fill the "
        "column in a copy, or export from a table that has prompts"
    )
    return [Problem(str(out), reason, key="prompt", severity="warning")]


def _require_own_tables(out: Path) -> None:
    """Raise InputError if a table would be replaced that was not written by an import of this name."""
    sessions = out.with_name(SESSIONS_TABLE)
    if not sessions.exists():
        for table in (out, out.with_name(PAIRS_TABLE)):
            if table.exists():
                way_out = "choose another folder for --out, or move it away"
                raise InputError(table, f"is there already, and was not written by an import: {way_out}")
        return
    read_sessions(sessions)
    if (named := ratings_beside(sessions)) != out.name:
        reason = f"belongs to {named}, which is beside it: give that name to --out, or another folder"
        raise InputError(sessions, reason)


def _require_nothing_lost(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputProblems if there are answers of raters who are not among the rows, or newer ones than theirs."""
    if not out.with_name(SESSIONS_TABLE).exists():
        return
    saved = {(row["set"], row["rater"]): _moment(row["exported_at"]) for row in rows}
    lost: dict[str, str] = {}
    for of, answered in read_sessions(out).groupby(["set", "rater"]).answered_at:
        set_hash, rater = map(str, of)
        if (set_hash, rater) not in saved:
            lost[rater] = f"has answers of {rater} that are not among the files: give them, too"
        elif newer := sum(_moment(at) > saved[set_hash, rater] for at in answered):
            what = f"{counted(newer, 'answer')} of {rater} that came later than their file was saved"
            lost.setdefault(rater, f"has {what}: give the newer file, too")
    if lost:
        raise InputProblems([Problem(str(out), reason) for _, reason in sorted(lost.items())])


_moment = datetime.fromisoformat
