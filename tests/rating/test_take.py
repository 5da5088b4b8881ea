"""An import as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn import disk
from medsyn.errors import InputError, InputProblems
from medsyn.rating.formats import read_key, seal
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


def test_the_table_is_in_the_data_directory(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1")
    with pytest.raises(InputError, match="is outside of the data directory"):
        take(files, [key], tmp_path / "ratings.csv", root=tmp_path / "images")


def test_an_older_file_does_not_replace_newer_answers(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1")
    whole = json.loads(files[0].read_text())
    half = {**whole, "answers": whole["answers"][:5], "exported_at": "2026-01-01T09:59:59Z"}
    older = sets.write_answers(tmp_path / "older.json", seal(half))
    out = tmp_path / "ratings.csv"
    take(files, [key], out)
    before = [(tmp_path / name).read_bytes() for name in TABLES]
    with pytest.raises(InputProblems, match="23 answers of R1 that came later than their file was saved"):
        take([older], [key], out)
    take([older, *files], [key], out)
    assert [(tmp_path / name).read_bytes() for name in TABLES] == before


@pytest.mark.parametrize("name", ["ratings.csv", "pairs.csv"])
def test_no_table_of_somebody_else_is_replaced(tmp_path: Path, name: str) -> None:
    files, key = prepare(tmp_path, "R1")
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}: is there already, and was not written by an import"):
        take(files, [key], tmp_path / "ratings.csv")
    assert (tmp_path / name).read_text() == "mine"


def test_one_import_to_a_folder(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1")
    take(files, [key], tmp_path / "ratings.csv")
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(InputError, match="belongs to ratings"):
        take(files, [key], tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "mine"


@pytest.mark.parametrize("writes", [1, 2])
def test_killed_between_the_tables_the_same_import_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    files, key = prepare(tmp_path, "R1")
    write, written = disk.write_atomic, []

    def killed(path: Path, *given: object) -> None:
        if len(written) == writes:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as until:
        until.setattr(disk, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            take(files, [key], tmp_path / "ratings.csv")
    assert take(files, [key], tmp_path / "ratings.csv").ratings == sets.CASES
    assert all((tmp_path / name).is_file() for name in TABLES)


@pytest.mark.parametrize("way", ["sub/../ratings.csv", "link/ratings.csv"])
def test_the_data_directory_may_be_named_in_any_way(tmp_path: Path, way: str) -> None:
    files, key = prepare(tmp_path, "R1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    assert take(files, [key], tmp_path / way, with_decoys=True).ratings == sets.CASES + sets.DECOYS
    assert "images/00.png,1" in (tmp_path / "ratings.csv").read_text()


def test_images_without_a_prompt_are_told(tmp_path: Path) -> None:
    files, key = prepare(tmp_path, "R1")
    key.write_text(key.read_text().replace("CT: finding 3", ""))
    (warning,) = take(files, [key], tmp_path / "ratings.csv").warnings
    assert "has ratings of 1 image without a prompt" in warning.reason
