"""Scores of images that are there: bad files are told all at once, and the others are scored."""

from __future__ import annotations

import csv
import gc
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

import medsyn
from medsyn import disk
from medsyn.cli import app, score
from medsyn.data.phantoms.dataset import write_dataset
from medsyn.modality_names import canonical_modality
from medsyn.models.policy import Policy
from medsyn.models.quality import FEATURES
from medsyn.models.scorers import save_scorer
from medsyn.models.scores import Card, Threshold
from medsyn.models.selector import Selector
from medsyn.models.tiny import TEXT_WIDTH
from medsyn.scoring import score as scoring
from medsyn.scoring import table
from medsyn.scoring.score import ScoredImage
from tests.data.images.test_dicom import PATIENT, make
from tests.helpers.generated_campaign import SCORER


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Selector with a card, and a Policy."""
    root = tmp_path_factory.mktemp("scorers")
    one = Threshold(threshold=0.5, good=20, poor=10)
    card = Card(modalities=["X-Ray", "MRI"], thresholds={"X-Ray": one, "MRI": one.model_copy(update={"threshold": 0})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_scorer(Selector(SCORER, card), root / "selector")
        save_scorer(Policy(SCORER, TEXT_WIDTH), root / "policy")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three photographs that say nothing of themselves."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (40, 48), dtype=np.uint8)
        PillowImage.fromarray(noise).save(folder / f"p{number}.png")
    return folder


def run(*words: str | Path) -> int:
    given = ["score", *map(str, words), "--device", "cpu"]
    return app.dispatch("medsyn", {"score": app.Command("", score.main)}, given)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_has_thresholds_marks_and_metrics(
    scorers: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pictures, "--selector", scorers / "selector", "--modality", "brain MRI") == 0
    told = capsys.readouterr()
    found = rows(told.out)
    assert list(found[0]) == list(table.COLUMNS) and set(FEATURES) < set(found[0])
    assert [row["file"] for row in found] == [str(pictures / f"p{number}.png") for number in range(3)]
    assert {(row["modality"], row["threshold"], row["passes"], row["policy"]) for row in found} == {
        ("Brain MRI", "0", "true", "")
    }
    assert all(np.isfinite(float(row[name])) for row in found for name in FEATURES)
    assert told.err == "3 images scored, 3 of 3 reach the Selector's threshold, 0 unfamiliar\n"


@pytest.mark.parametrize(
    ("modality", "words"),
    [
        (None, "nothing says their modality, so no threshold is known for them: give --modality"),
        ("OCT", "the Selector has not learned from OCT: its scores of them are a guess"),
    ],
)
def test_what_the_selector_does_not_know_is_said(
    modality: str | None, words: str, scorers: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--modality", modality] if modality else []
    assert run(pictures, "--selector", scorers / "selector", *given) == 0
    told = capsys.readouterr()
    assert {(row["threshold"], row["passes"]) for row in rows(told.out)} == {("", "")}
    assert f"warning: 3 images (p0.png, p1.png, p2.png): {words}\n" in told.err


def test_bad_files_are_told_all_at_once_and_the_others_are_scored(
    scorers: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (pictures / "b.jpg").write_text("no picture")
    (pictures / "notes.txt").write_text("not looked at")
    (tmp_path / "empty").mkdir()
    given = [pictures, tmp_path / "none.png", tmp_path / "empty", tmp_path / "*.nii"]
    assert run(*given, "--selector", scorers / "selector", "--modality", "MRI") == 65
    told = capsys.readouterr()
    assert [Path(row["file"]).name for row in rows(told.out)] == ["p0.png", "p1.png", "p2.png"]
    for name, reason in (
        (tmp_path / "none.png", "there is no such file or folder"),
        (tmp_path / "empty", "there is no image in it"),
        (tmp_path / "*.nii", "matches no file"),
        (pictures / "a.png", "is damaged and cannot be decoded"),
        (pictures / "b.jpg", "its content is of an unknown kind, but its name says JPEG"),
    ):
        assert f"error: {name}: {reason}" in told.err
    assert "notes.txt" not in told.err and "Traceback" not in told.err


def test_no_patient_is_named(scorers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    make().save_as(folder / "IM000001", enforce_file_format=True)  # archives give no suffix
    broken = make()
    broken.PixelData = b"\0"
    broken.save_as(folder / "broken.dcm", enforce_file_format=True)
    assert run(folder, "--selector", scorers / "selector", "--modality", "MRI") == 65
    told = capsys.readouterr()
    assert [Path(row["file"]).name for row in rows(told.out)] == ["IM000001"]
    assert not any(secret in told.out + told.err for secret in (PATIENT, "MRN-0042", "Jane"))


@pytest.mark.parametrize("order", [[], ["--reverse"]])
def test_rows_come_in_the_order_of_a_column(
    order: list[str], scorers: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "table.csv"
    given = [pictures, "--selector", scorers / "selector", "--modality", "MRI", "--sort", "mean", *order]
    assert run(*given, "--out", out) == 0
    values = [float(row["mean"]) for row in rows(out.read_text())]
    assert values == sorted(values, reverse=bool(order)) and len(set(values)) == 3
    assert capsys.readouterr().out == "" and list(out.parent.iterdir()) == [out]


def test_images_without_a_value_come_last() -> None:
    def image(name: str, policy: float | None) -> ScoredImage:
        return ScoredImage(name, None, 0.5, 0.0, False, None, None, policy)

    given = [image("a", None), image("b", 0.2), image("c", 0.1), image("d", 0.2)]
    assert [one.file for one in table.ordered(given, "policy")] == ["c", "b", "d", "a"]
    assert [one.file for one in table.ordered(given, "policy", descending=True)] == ["b", "d", "c", "a"]


def test_json_has_the_same_rows_and_the_problems(
    scorers: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "z.png").write_text("no picture")
    assert run(pictures, "--selector", scorers / "selector", "--modality", "MRI", "--json") == 65
    told = json.loads(capsys.readouterr().out)
    assert [list(row) for row in told["images"]] == [list(table.COLUMNS)] * 3
    assert [problem["source"] for problem in told["problems"]] == [str(pictures / "z.png")]


def test_a_table_says_modality_and_prompt(scorers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data", images_per_kind=4, prompts_per_kind=1, image_size=64, seed=0)
    metadata = tmp_path / "data" / "metadata.csv"
    texts = {line["path"]: line for line in csv.DictReader(metadata.open())}
    words = ["--selector", scorers / "selector", "--policy", scorers / "policy", "--prompts", metadata]
    assert run(str(tmp_path / "data" / "images" / "*" / "0*"), *words) == 0  # others are rated ones
    found = rows(capsys.readouterr().out)
    for row in found:
        its = texts[str(Path(row["file"]).relative_to(tmp_path / "data"))]
        assert canonical_modality(row["modality"]) == canonical_modality(its["modality"])
        assert 0 < float(row["policy"]) < 1
    assert len(found) == len(texts) and len({row["policy"] for row in found}) > 1


def test_one_text_is_for_all_images_and_without_one_there_is_no_policy_score(
    scorers: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [pictures, "--selector", scorers / "selector", "--policy", scorers / "policy"]
    assert run(*words, "--prompts", "MRI: tumour, left") == 0
    assert {row["modality"] for row in rows(capsys.readouterr().out)} == {"MRI"}
    assert run(*words, "--modality", "MRI") == 65
    told = capsys.readouterr()
    assert {row["policy"] for row in rows(told.out)} == {""}
    assert "error: 3 images (p0.png, p1.png, p2.png): nothing says what they show" in told.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sort", "mena"], "--sort: there is no column 'mena'; did you mean mean?"),
        (["--modality", "ultrasound"], "--modality: 'ultrasound' must be OCT"),
        (["--prompts", "none.csv"], "none.csv: there is no such file"),
        (["--policy", "nowhere"], "nowhere: is not a saved Policy"),
        (["--prompts", "..."], "--prompts: '...' says nothing; a text is required"),
    ],
)
def test_wrong_arguments_are_told(
    words: list[str], reason: str, scorers: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pictures, "--selector", scorers / "selector", *words) == 65
    assert capsys.readouterr().err.startswith(reason)


def test_a_policy_of_another_model_is_refused(scorers: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(scorers / "policy", tmp_path / "policy")
    disk.write_json(tmp_path / "policy" / "facts.json", {"model_paths.stable_diffusion": "0" * 64})
    with pytest.raises(medsyn.InputProblems, match="was trained with other weights than those of embedded"):
        medsyn.score(pictures, scorers / "selector", tmp_path / "policy", device="cpu")


def test_from_python_images_come_one_by_one_and_problems_at_the_end(scorers: Path, pictures: Path) -> None:
    given: dict[str, Any] = {"selector": scorers / "selector", "modality": "MRI", "device": "cpu"}
    (pictures / "z.png").write_text("no picture")
    found = medsyn.score(pictures, **given)
    assert [Path(next(found).file).name for _ in range(3)] == ["p0.png", "p1.png", "p2.png"]
    with pytest.raises(medsyn.InputProblems, match=r"z\.png"):
        next(found)
    problems: list[Any] = []
    assert len(list(medsyn.score([pictures], problems=problems, **given))) == 3
    assert [Path(problem.source).name for problem in problems] == ["z.png"]


def test_memory_holds_a_few_pictures_at_a_time(scorers: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "TOGETHER", 4)
    monkeypatch.setattr(scoring, "threads", lambda: 1)
    names = [pictures / f"link{number}.png" for number in range(20)]
    for name in names:
        name.symlink_to(pictures / "p0.png")
    scored = medsyn.score(names, scorers / "selector", modality="MRI", device="cpu")
    next(scored)
    for _ in range(14):
        next(scored)
    held = [one for one in gc.get_objects() if isinstance(one, scoring._Picture)]
    assert 4 <= len(held) <= 4 + 4
