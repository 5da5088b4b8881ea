"""Exports of Label Studio, as it writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn.cli import rate
from medsyn.data.tables.read import read_ratings
from medsyn.errors import InputError, InputProblems
from medsyn.rating.label_studio import read_export

HEADER = "annotation_id,annotator,created_at,id,image,lead_time,modality,prompt,rating\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user is; with two images below it."""
    (tmp_path / "img").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "img" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(export: str, *further: str) -> None:
    given = ["import", export, "--images", "img", "--expert-level", "annotator-1=3", "--out", "ratings.csv", *further]
    assert rate.main("medsyn rate", given) == 0


def test_a_json_export(folder: Path) -> None:
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


def test_a_csv_export(folder: Path) -> None:
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


@pytest.mark.parametrize(
    ("row", "key", "says"),
    [
        ("0,1,x,0,/u/0a1b2c3d-a.png,1,CT,CT: x,5", "rating", "5 is not 1, 2 or 3"),
        ("0,1,x,0,/u/0a1b2c3d-c.png,1,CT,CT: x,2", "image", "'c.png' is not there; looked for in img"),
        ("0,1,x,0,/u/twice.png,1,CT,CT: x,2", "image", "'twice.png' is there 2 times"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, row: str, key: str, says: str) -> None:
    for place in ("img/one", "img/two"):
        (folder / place).mkdir()
        (folder / place / "twice.png").touch()
    (folder / "export.csv").write_text(HEADER + row + "\n")
    with pytest.raises(InputProblems) as caught:
        read_export(Path("export.csv"), Path("img"))
    (problem,) = caught.value.problems
    assert (problem.row, problem.key) == (2, key)
    assert says in problem.reason


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("export.csv", "image,rating\n", "there is no column 'modality'; tasks need image, modality and prompt"),
        ("export.csv", HEADER, "has no ratings: is the control in Label Studio named 'rating'"),
        ("export.json", "[]", "has no ratings"),
        ("export.json", '[{"data": {"image": "a.png"}}]', "the task has no 'modality' in its data"),
        ("export.json", "[1]", "the task has no 'image' in its data"),
        ("export.json", "[", "is not JSON"),
    ],
)
def test_other_files_are_refused(folder: Path, name: str, content: str, says: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=says):
        read_export(Path(name), Path("img"))


def test_the_command_says_what_is_missing(folder: Path) -> None:
    (folder / "export.csv").write_text(HEADER + "0,1,x,0,/u/0a1b2c3d-a.png,1,CT,CT: x,2\n")
    (folder / "page.json").write_text("{}")
    for given, says in (
        (["export.csv"], "name the folder that its images were uploaded from with --images"),
        (["page.json"], "--key.*is needed"),
        (["export.csv", "page.json"], "import them apart"),
        (["export.csv", "--images", "img", "--expert-level", "annotator-7=2"], "there is no rater 'annotator-7'"),
        (["export.csv", "--images", "img", "--expert-level", "annotator-1=4"], "is not of the form"),
    ):
        with pytest.raises(InputError, match=says):
            rate.main("medsyn rate", ["import", *given, "--out", "ratings.csv"])
