"""Exports of Label Studio, as it writes them."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

import pytest

from medsyn.cli import rate
from medsyn.data.tables.read import read_ratings
from medsyn.errors import InputError, InputProblems
from medsyn.rating.label_studio import is_export, read_export

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


def task(image: str = "a.png", value: object = None, **other: object) -> dict[str, object]:
    part = {"from_name": "rating", "value": {"rating": 2} if value is None else value}
    data = {"image": image, "prompt": "CT: x", "modality": "CT"}
    return {"data": data, "annotations": [{"completed_by": 1, "result": [part]}], **other}


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/data/upload/1/0a1b2c3d-a.png", "a.png"),
        ("0a1b2c3d-eye.png", "0a1b2c3d-eye.png"),
        ("ffffffff-0a1b2c3d-eye.png", "0a1b2c3d-eye.png"),
        ("/data/local-files/?d=img%2Fmy%20scan.png", "my scan.png"),
        ("/data/upload/1/0a1b2c3d-my%20scan.png", "my scan.png"),
        ("s3://bucket/folder/a.png", "a.png"),
    ],
)
def test_images_are_found_as_label_studio_names_them(folder: Path, image: str, name: str) -> None:
    for other in ("0a1b2c3d-eye.png", "my scan.png"):
        (folder / "img" / other).touch()
    (folder / "x.json").write_bytes(codecs.BOM_UTF8 + json.dumps([task(image)]).encode())
    assert is_export(folder / "x.json")
    assert [one.file.name for one in read_export(folder / "x.json", folder / "img")] == [name]


@pytest.mark.parametrize("rating", [{"number": 2.0}, {"choices": ["2 acceptable"]}, {"choices": ["2: fine"]}])
def test_a_grade_may_be_written_in_several_ways(folder: Path, rating: object) -> None:
    (folder / "x.json").write_text(json.dumps([task(value=rating)]))
    assert [one.rating for one in read_export(folder / "x.json", folder / "img")] == [2]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (task(value={"rating": 2.5}), "2.5 is not 1, 2 or 3"),
        (task(value={"choices": ["1-2"]}), "'1-2' is not 1, 2 or 3"),
        (task(value={"choices": 5}), "5 is not 1, 2 or 3"),
        (task(annotations="x"), "annotations are not as Label Studio"),
        (task(annotations=[{"result": 5}]), "annotations are not as Label Studio"),
        (task(annotations=[{"result": ["x"]}]), "annotations are not as Label Studio"),
        (task(data={"image": "a.png", "prompt": None, "modality": "CT"}), "prompt: there is none"),
        (
            task(data={"image": "a.png", "prompt": "x", "modality": "Photo"}),
            "'Photo' is not one of the five modalities",
        ),
        ({"image": "a.png", "rating": 2}, "export as JSON, not JSON-MIN"),
    ],
)
def test_what_is_wrong_with_a_task_is_told(folder: Path, given: object, says: str) -> None:
    (folder / "x.json").write_text(json.dumps([given]))
    with pytest.raises((InputError, InputProblems), match=re.escape(says)):
        read_export(folder / "x.json", folder / "img")


@pytest.mark.parametrize("row", ["1,2", "1," + "[" * 100_000 + ",a.png,CT,CT: x"])
def test_a_row_that_is_cut_off_or_nested_is_told(folder: Path, row: str) -> None:
    (folder / "x.csv").write_text("annotator,rating,image,modality,prompt\n" + row + "\n")
    with pytest.raises(InputProblems, match=r"line 2"):
        read_export(folder / "x.csv", folder / "img")
