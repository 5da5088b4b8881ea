"""medsyn copies: what it says of images, and of what it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from medsyn.__main__ import COMMANDS
from medsyn.cli import app
from medsyn.disk import read_json
from medsyn.evaluation.memorization import planted
from tests.evaluation.memorization.conftest import draw


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of five patients each, and synthetic images: one copy of the first."""
    folder = tmp_path_factory.mktemp("copies")
    for table, numbers in (("real", range(5)), ("controls", range(5, 10)), ("other", range(1))):
        rows = ["path,Text,modality,patient_id"]
        for number in numbers:
            Image.fromarray(draw("OCT", number)).save(folder / f"{number}.png")
            rows.append(f'{number}.png,"OCT: drusen",OCT,p{number}')
        (folder / f"{table}.csv").write_text("\n".join(rows) + "\n")
    (folder / "made").mkdir()
    Image.fromarray(draw("OCT", 0)[:, ::-1]).save(folder / "made" / "copy.png")
    return folder


def run(*arguments: str | Path) -> int:
    return app.dispatch("medsyn", COMMANDS, ["copies", *map(str, arguments)])


def test_copies_are_listed_and_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planted, "CHANGES", {"flip": planted.CHANGES["flip"]})
    small = ("--honest", "2", "--planted", "1", "--modality", "retinal oct")
    code = run(
        data / "made", "--real", data / "real.csv", "--controls", data / "controls.csv", *small, "--out", tmp_path
    )
    said = capsys.readouterr().out
    assert code == 0
    assert "1 copy among 1 synthetic image" in said
    assert "copy.png: copy of an image, 0.png" in said
    assert (tmp_path / "exclude.csv").read_text().splitlines()[1].split(",")[1] == "0.png"
    assert read_json(tmp_path / "copies.json")["control_group"]["trained"] == 5
    assert Image.open(tmp_path / "copies.png").size == (260, 128)


def test_everything_that_is_wrong_with_the_images_is_said_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    code = run(data / "made", tmp_path / "torn.png", "--real", data / "real.csv")
    said = capsys.readouterr().err
    assert code == 65
    assert "copy.png: does not say its modality: give --modality" in said
    assert "torn.png" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--controls", "other.csv"], "--controls: 1 patient of --real, too"),
        (["--honest", "0"], "--honest: must be at least 1, got 0"),
        (["--modality", "ECG"], "--modality: 'ECG'"),
        (["--real", "absent.csv"], "absent.csv"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], said: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    given = dict(zip(["--real", "--modality"], ["real.csv", "OCT"], strict=True)) | dict([arguments])
    assert run("made", *(word for pair in given.items() for word in pair)) == 65
    assert said in capsys.readouterr().err
