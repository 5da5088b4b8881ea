"""What docs/data.md prints to convert other programs' tables, run on tables as those programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn.data.tables.read import read_dataset, read_ratings
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


def test_an_export_of_label_studio(folder: Path) -> None:
    lines = [
        "annotation_id,annotator,created_at,id,image,lead_time,modality,prompt,rating",
        '0,1,2025-01-01T00:00:00Z,0,/data/upload/1/0a1b2c3d-a.png,3.2,X-Ray,Chest X-ray: clear,"[{""rating"": 1}]"',
        "1,2,2025-01-01T00:00:00Z,1,/data/upload/1/0a1b2c3d-b.png,3.2,X-Ray,Chest X-ray: opacity,3",
        "2,2,2025-01-01T00:00:00Z,2,/data/upload/1/0a1b2c3d-b.png,3.2,X-Ray,Chest X-ray: opacity,",
    ]
    (folder / "export.csv").write_text("\n".join(lines) + "\n")
    run("export.csv")
    table = read_ratings(folder / "ratings.csv")
    assert [(row.file, row.rating, row.expert_level) for row in table.require(strict=True)] == [
        ("img/a.png", 1, 3),
        ("img/b.png", 3, 1),
    ]
