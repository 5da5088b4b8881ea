"""The table of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from medsyn.data.check import Reading, read_tables
from medsyn.data.tables.pairs import read_pairs
from medsyn.errors import InputError

HEADER = "image_a,image_b,preferred,prompt,rater\n"
GOOD = "a.png,b.png,a,CT: left nodule,R1\nb.png,c.png,Neither,CT: normal,\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        Image.linear_gradient("L").resize((32, 32)).rotate(90 * number).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "pairs.csv").write_text(text)
    return folder / "pairs.csv"


def test_pairs(folder: Path) -> None:
    table = read_pairs(write(folder, HEADER + GOOD))
    assert table.problems == []
    first, second = table.rows
    assert (first.a.path, first.b.file, first.preferred, first.modality) == (folder / "a.png", "b.png", "a", "CT")
    assert (first.rater, second.rater, second.preferred) == ("R1", None, "neither")


@pytest.mark.parametrize(
    ("row", "key", "says"),
    [
        ("a.png,a.png,a,CT: x,", "image_b", "is the same image as image_a"),
        ("a.png,b.png,left,CT: x,", "preferred", "'left' is not a, b, same or neither"),
        ("a.png,b.png,,CT: x,", "preferred", "is not a, b, same or neither"),
        ("a.png,b.png,b,nodule,", "prompt", "does not begin with its modality"),
        ("a.png,b.png,b,CT:,", "prompt", "says nothing"),
        ("a.png,none.png,b,CT: x,", "image_b", "'none.png'"),
    ],
)
def test_a_wrong_row_is_named(folder: Path, row: str, key: str, says: str) -> None:
    table = read_pairs(write(folder, HEADER + GOOD + row + "\n"))
    (problem,) = table.errors
    assert (problem.row, problem.key) == (4, key)
    assert says in problem.reason
    assert len(table.rows) == 2


def test_a_column_names_the_modality(folder: Path) -> None:
    path = write(folder, "image_a,image_b,preferred,prompt,modality\na.png,b.png,same,left nodule,ct scan\n")
    (pair,) = read_pairs(path).rows
    assert (pair.modality, pair.prompt) == ("CT", "CT: left nodule")


def test_a_missing_column_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no column 'preferred'"):
        read_pairs(write(folder, "image_a,image_b,prompt\na.png,b.png,CT: x\n"))


def test_check_reads_the_images_of_pairs_and_says_what_is_there(folder: Path) -> None:
    (folder / "c.png").write_bytes(b"no picture")
    found = read_tables([write(folder, HEADER + GOOD)], Reading())
    (problem,) = found.problems
    assert (problem.row, problem.key) == (3, "image_b")
    (contents,) = found.contents
    assert (contents.kind, contents.parts["CT"].rows) == ("pairs", 2)


def test_two_volumes_of_one_file_are_a_pair(folder: Path) -> None:
    path = write(folder, HEADER.strip() + ",volume_a,volume_b\na.png,a.png,a,CT: x,,1,2\na.png,b.png,a,CT: x,,,x\n")
    table = read_pairs(path)
    assert [(pair.a.volume, pair.b.volume) for pair in table.rows] == [(1, 2)]
    assert [(problem.row, problem.key) for problem in table.errors] == [(3, "volume_b")]
