"""From sessions to the tables that scorers are trained on."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pandas as pd
import pytest

from medsyn.data.tables.pairs import read_pairs
from medsyn.data.tables.read import read_ratings
from medsyn.errors import InputError, InputProblems
from medsyn.rating.collect import collect
from medsyn.rating.formats import read_key
from medsyn.rating.sessions import read_sessions, schema, write_sessions
from medsyn.rating.tables import write_tables
from tests.helpers import rating as sets


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[dict]]:
    key_file = sets.write_set(tmp_path)
    key = read_key(key_file)
    first = sets.answers(key, "R1", lambda image: 1 + int(image[5:9]) % 3, lambda number: "right")
    second = sets.answers(key, "R2", lambda image: 2, lambda number: "both-bad", level=1)
    files = [sets.write_answers(tmp_path / f"{tree['rater']['id']}.json", tree) for tree in (first, second)]
    return tmp_path, collect(files, [key_file])[0]


def test_the_tables_are_those_that_campaigns_read(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    assert write_tables(folder / "ratings.csv", folder, rows) == (2 * sets.CASES, 2 * sets.PAIRS)
    ratings = read_ratings(folder / "ratings.csv").require(strict=True)
    first = ratings[1]
    assert (first.file, first.rating, first.modality, first.expert_level) == ("images/01.png", 2, "CT", 3)
    assert (first.prompt, first.group, first.rater) == ("CT: finding 1", "p0", "R1")
    pairs = read_pairs(folder / "pairs.csv").require(strict=True)
    assert [(pair.a.file, pair.b.file, pair.preferred) for pair in pairs[:1]] == [
        ("images/00.png", "images/01.png", "b")
    ]
    assert {pair.preferred for pair in pairs if pair.rater == "R2"} == {"neither"}


def test_decoys_come_along_if_asked_and_repeats_never(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    assert write_tables(folder / "ratings.csv", folder, rows, with_decoys=True)[0] == 2 * (sets.CASES + sets.DECOYS)


def test_writing_again_changes_nothing(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    contents = []
    for _ in range(2):
        write_tables(folder / "ratings.csv", folder, rows)
        contents.append([(folder / name).read_bytes() for name in ("ratings.csv", "pairs.csv", "sessions.parquet")])
    assert contents[0] == contents[1]


def test_generated_images_elsewhere_are_copied_and_real_ones_are_not(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    out = folder / "data" / "ratings.csv"
    write_tables(out, folder / "data", rows)
    copies = sorted((folder / "data" / "rated-images").iterdir())
    assert len(copies) == sets.CASES
    assert all(row.path in copies for row in read_ratings(out).require(strict=True))
    with pytest.raises(InputProblems, match="is a real image outside of"):
        write_tables(out, folder / "data", rows, with_decoys=True)


def test_members_of_archives_are_copied(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    with tarfile.open(folder / "block.tar", "w") as archive:
        archive.add(folder / "images/00.png", "first.png")
    row = next(row for row in rows if row["kind"] == "case") | {
        "file": str(folder / "block.tar"),
        "member": "first.png",
    }
    write_tables(folder / "ratings.csv", folder, [row])
    (copy,) = (folder / "rated-images").iterdir()
    assert copy.read_bytes() == (folder / "images/00.png").read_bytes()


def test_an_archive_is_searched_once(made: tuple[Path, list[dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rows = made
    opened: list[object] = []
    search = tarfile.open
    with tarfile.open(folder / "block.tar", "w") as archive:
        archive.add(folder / "images", "all")
    monkeypatch.setattr(tarfile, "open", lambda *given: opened.append(given) or search(*given))
    cases = [row for row in rows if row["kind"] == "case" and not row["decoy"]]
    packed = [one | {"file": str(folder / "block.tar"), "member": f"all/{Path(one['file']).name}"} for one in cases]
    assert write_tables(folder / "ratings.csv", folder, packed)[0] == 2 * sets.CASES
    assert len(opened) == 1
    with pytest.raises(InputProblems, match=r"block\.tar, none\.png: was rated, and is not in the archive any more"):
        write_tables(folder / "ratings.csv", folder, [packed[0] | {"member": "none.png"}])


@pytest.mark.parametrize(("content", "says"), [(None, "is gone"), (b"other", "has changed")])
def test_an_image_that_is_not_what_was_rated_is_refused(
    made: tuple[Path, list[dict]], content: bytes | None, says: str
) -> None:
    folder, rows = made
    (folder / "images/02.png").unlink()
    if content:
        (folder / "images/02.png").write_bytes(content)
    with pytest.raises(InputProblems, match=f"02.png.*{says}"):
        write_tables(folder / "ratings.csv", folder, rows)
    assert not (folder / "ratings.csv").exists()


def test_sessions_keep_everything(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    write_sessions(folder / "sessions.parquet", rows)
    for place in (folder, folder / "ratings.csv", folder / "sessions.parquet"):
        read = read_sessions(place)
        assert list(read.columns) == schema().names
    assert len(read) == len(rows)
    assert read.rating.isna().sum() == 2 * sets.PAIRS
    assert list(read.defects[0]) == ["noise"]
    assert isinstance(read.decoy.dtype, pd.BooleanDtype)


def test_no_sessions_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no sessions.parquet here: `medsyn rate import"):
        read_sessions(tmp_path / "ratings.csv")


def test_volumes_of_a_file_are_images_of_their_own(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    case = next(row for row in rows if row["kind"] == "case")
    pair = next(row for row in rows if row["kind"] == "pair") | {"volume": 1, "volume_b": 2}
    same = {f"{name}_b": pair[name] for name in ("file", "sha256", "prompt")}
    several = [case | {"volume": 1, "rating": 1}, case | {"volume": 2, "rating": 3}, pair | same]
    write_tables(folder / "ratings.csv", folder, several)
    assert [(row.volume, row.rating) for row in read_ratings(folder / "ratings.csv").rows] == [(1, 1), (2, 3)]
    (found,) = read_pairs(folder / "pairs.csv").require(strict=True)
    assert (found.a.volume, found.b.volume, found.prompt) == (1, 2, pair["prompt"])


def test_images_of_two_prompts_were_compared_without_one(made: tuple[Path, list[dict]]) -> None:
    folder, rows = made
    write_tables(folder / "ratings.csv", folder, rows)
    assert read_pairs(folder / "pairs.csv").rows[0].prompt == "MRI: which image is better"
