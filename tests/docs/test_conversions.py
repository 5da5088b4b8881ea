"""What docs/data.md prints to convert other programs' tables, run on tables as those programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn.data.tables.read import read_dataset
from tests.docs.pages import blocks
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs" / "data.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user is; with two images below it."""
    (tmp_path / "img").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "img" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(about: str) -> None:
    (block,) = (block for block in blocks(PAGE) if block.language == "python" and about in block.text)
    exec(compile(block.text, str(PAGE), "exec"), {})


def test_the_list_of_an_imagefolder(folder: Path) -> None:
    rows = [{"file_name": f"img/{name}.png", "text": f"Chest X-ray: finding {name}"} for name in "ab"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("metadata.jsonl")
    table = read_dataset(folder / "dataset.csv")
    assert [(row.file, row.text, row.modality) for row in table.require(strict=True)] == [
        ("img/a.png", "Chest X-ray: finding a", "X-Ray"),
        ("img/b.png", "Chest X-ray: finding b", "X-Ray"),
    ]


def test_a_table_with_semicolons_in_utf_16(folder: Path) -> None:
    (folder / "table.txt").write_text("path;Text;modality\nimg/a.png;CT: 3,5 mm;CT\n", encoding="utf-16")
    run("table.txt")
    [row] = read_dataset(folder / "table.csv").require(strict=True)
    assert (row.file, row.text) == ("img/a.png", "CT: 3,5 mm")
