"""What an import writes: `sessions.parquet`, and made from it `ratings.csv` and `pairs.csv`, which campaigns read."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.rating.sessions import CASE, PAIR, SESSIONS_TABLE, write_sessions

RATING_COLUMNS = ("image_path", "rating", "modality", "expert_level", "prompt", "group", "rater", "volume")
PAIR_COLUMNS = ("image_a", "image_b", "preferred", "prompt", "modality", "rater", "volume_a", "volume_b")
PAIRS_TABLE = "pairs.csv"
WITHOUT_PROMPT = "which image is better"  # of pairs whose images were made from two prompts
IMAGES = "rated-images"  # copies of generated images, beside the tables

Row = Mapping[str, Any]


def write_tables(out: Path, root: Path, rows: Sequence[Row], with_decoys: bool = False) -> tuple[int, int]:
    """Write `sessions.parquet`, ratings to `out` and pairs to `pairs.csv`; return how many ratings and pairs there are.

    The sessions are written before what is made from them: after a kill in between, the same import goes on.

    A repeat measures its rater and is no rating of its own; nor is an answer "not sure". Generated images that are not
    below `root` are copied to `rated-images` beside the tables; real ones are never copied.

    Args:
        out: the ratings' table.
        root: the data directory that image paths are relative to; `out` is in it.
        rows: of the table of sessions.
        with_decoys: whether the ratings of real images that were mixed in are written, too.

    Raises:
        InputProblems: an image is gone or has changed, or a real one is outside of `root`.
    """
    rated = [
        row
        for row in rows
        if row["kind"] == CASE
        and row["rating"] is not None
        and row["repeat_of"] is None
        and (with_decoys or not row["decoy"])
    ]
    compared = [row for row in rows if row["kind"] == PAIR and row["preferred"] is not None]
    images = _Images(out.parent, root)
    ratings = [
        (
            *(images.name(row), row["rating"], row["modality"], row["expert_level"], row["prompt"]),
            *(_family(row), row["rater"], row.get("volume")),
        )
        for row in rated
    ]
    pairs = [
        (
            *(images.name(row), images.name(row, "_b")),
            *(row["preferred"], _compared_by(row), row["modality"], row["rater"]),
            *(row.get("volume"), row.get("volume_b")),
        )
        for row in compared
    ]
    if images.problems:
        raise InputProblems(images.problems)
    images.copy()
    write_sessions(out.with_name(SESSIONS_TABLE), rows, out.name)
    write_ratings(out, ratings)
    disk.write_atomic(out.with_name(PAIRS_TABLE), _csv(PAIR_COLUMNS, pairs))
    return len(ratings), len(pairs)


def write_ratings(out: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows of `RATING_COLUMNS`."""
    disk.write_atomic(out, _csv(RATING_COLUMNS, rows))


def _family(row: Row) -> str:
    """The group of an image: all candidates of one prompt are on one side of a split."""
    return row["prompt_id"] or ""


def _compared_by(row: Row) -> str:
    """The prompt of both images of a pair, or that they were compared without one."""
    prompt: str = row["prompt"]
    return prompt if prompt and prompt == row["prompt_b"] else f"{row['modality']}: {WITHOUT_PROMPT}"


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    return stream.getvalue()


class _Images:
    """What images are called in the tables: as they are below the data directory, or copies."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder, self._root = disk.absolute(str(folder)), disk.absolute(str(root))
        self._names: dict[tuple[str, str | None], str] = {}
        self._copies: dict[Path, bytes] = {}
        self._archives: dict[Path, dict[str, tuple[int, int]]] = {}
        self.problems: list[Problem] = []

    def name(self, row: Row, suffix: str = "") -> str:
        """The name of a row's image (of the second one of a pair with `_b`); what is wrong is in `problems`."""
        file, member = row[f"file{suffix}"], row[f"member{suffix}"]
        if (file, member) not in self._names:
            try:
                self._names[file, member] = self._find(Path(file), member, row[f"sha256{suffix}"], row["source"])
            except InputError as error:
                self._names[file, member] = ""
                self.problems += error.problems
        return self._names[file, member]

    def _find(self, file: Path, member: str | None, sha256: str, source: str) -> str:
        below = self._below_root(file) if member is None else None
        if below is not None:
            _require_same(file, disk.sha256_file(file) if file.is_file() else None, sha256)
            return below
        if source == "real":
            reason = f"is a real image outside of {self._root}, and is not copied: name its data directory with --root"
            raise InputError(file, reason)
        content = _content(file, member, self._archives)
        _require_same(file, hashlib.sha256(content).hexdigest(), sha256)
        suffix = Path(member or file.name).suffix
        copy = self._folder / IMAGES / f"{sha256[:20]}{suffix}"
        self._copies[copy] = content
        return copy.relative_to(self._root).as_posix()

    def _below_root(self, file: Path) -> str | None:
        """What a file is called below the data directory, by the way that the key names it or by its real path."""
        named, real = disk.absolute(str(file)), Path(os.path.realpath(file))
        for path, root in ((named, self._root), (real, Path(os.path.realpath(self._root)))):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return None

    def copy(self) -> None:
        """Write the copies that are not there yet."""
        for path, content in self._copies.items():
            if not path.is_file() or path.stat().st_size != len(content):
                disk.write_atomic(path, content)


def _places(archive: Path) -> dict[str, tuple[int, int]]:
    """Where the members of an archive are: (offset, size) by name."""
    with tarfile.open(archive, "r:") as opened:
        return {member.name: (member.offset_data, member.size) for member in opened}


def _content(file: Path, member: str | None, archives: dict[Path, dict[str, tuple[int, int]]]) -> bytes:
    """The bytes of an image; `archives` remembers where members are, since archives have thousands of them."""
    try:
        if member is None:
            return file.read_bytes()
        if file not in archives:
            archives[file] = _places(file)
        offset, size = archives[file][member]
        with disk.open_file(file) as stream:
            stream.seek(offset)
            return stream.read(size)
    except KeyError:
        raise InputError(f"{file}, {member}", "was rated, and is not in the archive any more") from None
    except (OSError, tarfile.TarError) as error:
        named = f"{file}, {member}" if member else file
        raise InputError(named, f"was rated, and cannot be read any more: {error}") from None


def _require_same(file: Path, found: str | None, sha256: str) -> None:
    if found is None:
        raise InputError(file, "is gone since it was put into the set: put it back, or import where it is")
    if found != sha256:
        raise InputError(file, "has changed since it was put into the set: the answers are about another image")
