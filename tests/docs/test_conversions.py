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


def test_a_json_export_of_label_studio(folder: Path) -> None:
    def part(**value: object) -> dict[str, object]:
        return {"from_name": "rating", "to_name": "image", "type": next(iter(value)), "value": value}

    comment = {"from_name": "comment", "to_name": "image", "type": "textarea", "value": {"text": ["grainy"]}}
    given = {
        "a": [
            {"completed_by": 1, "was_cancelled": False, "result": [comment, part(rating=1)]},
            {"completed_by": {"id": 2, "email": "x"}, "was_cancelled": False, "result": [part(choices=["3"])]},
        ],
        "b": [
            {"completed_by": 1, "was_cancelled": True, "result": [part(rating=2)]},
            {"completed_by": 2, "was_cancelled": False, "result": [comment]},
        ],
    }
    tasks = [
        {
            "id": number,
            "annotations": annotations,
            "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.png", "prompt": "CT: x", "modality": "CT"},
        }
        for number, (name, annotations) in enumerate(given.items())
    ]
    (folder / "export.json").write_text(json.dumps(tasks))
    run("export.json")
    rows = read_ratings(folder / "ratings.csv").require(strict=True)
    assert [(row.file, row.rating, row.expert_level) for row in rows] == [("img/a.png", 1, 3), ("img/a.png", 3, 1)]


def test_a_table_with_semicolons_in_utf_16(folder: Path) -> None:
    (folder / "table.txt").write_text("path;Text;modality\nimg/a.png;CT: 3,5 mm;CT\n", encoding="utf-16")
    run("table.txt")
    [row] = read_dataset(folder / "table.csv").require(strict=True)
    assert (row.file, row.text) == ("img/a.png", "CT: 3,5 mm")


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
