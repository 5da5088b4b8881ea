"""An import as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsyn.errors import InputError, InputProblems
from medsyn.rating.formats import read_key
from medsyn.rating.take import take
from tests.helpers import rating as sets

TABLES = ("ratings.csv", "pairs.csv", "sessions.parquet")


def prepare(folder: Path, *raters: str) -> tuple[list[Path], Path]:
    key_file = sets.write_set(folder)
    key = read_key(key_file)
    trees = [sets.answers(key, rater, lambda image: 1 + int(image[5:9]) % 3) for rater in raters]
    return [sets.write_answers(folder / f"{n}.json", tree) for n, tree in enumerate(trees)], key_file


def test_a_second_import_changes_nothing_and_more_raters_are_added(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1", "R2")
    out = tmp_path / "ratings.csv"
    assert take(files[:1], [key], out).raters == 1
    first = [(tmp_path / name).read_bytes() for name in TABLES]
    take(files[:1], [key], out)
    assert [(tmp_path / name).read_bytes() for name in TABLES] == first
    taken = take(files[::-1], [key], out)
    assert (taken.raters, taken.ratings, taken.pairs) == (2, 2 * sets.CASES, 2 * sets.PAIRS)


def test_nobody_is_lost(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1", "R2")
    take(files, [key], tmp_path / "ratings.csv")
    before = (tmp_path / "ratings.csv").read_bytes()
    with pytest.raises(InputProblems, match="has answers of R1 that are not among the files"):
        take(files[1:], [key], tmp_path / "ratings.csv")
    assert (tmp_path / "ratings.csv").read_bytes() == before


def test_a_table_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1")
    (tmp_path / "ratings.csv").write_text("image_path,rating\n")
    with pytest.raises(InputError, match="was not written by an import"):
        take(files, [key], tmp_path / "ratings.csv")


def test_the_table_is_in_the_data_directory(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1")
    with pytest.raises(InputError, match="is outside of the data directory"):
        take(files, [key], tmp_path / "ratings.csv", root=tmp_path / "images")
