"""`medsyn rate import` and `rate report`, as users run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsyn.cli import rate
from medsyn.errors import InputProblems
from medsyn.rating.formats import read_key
from tests.helpers import rating as sets


def prepare(folder: Path) -> list[str]:
    key_file = sets.write_set(folder)
    key = read_key(key_file)
    files = []
    for rater, shift in (("R1", 0), ("R2", 1)):
        tree = sets.answers(key, rater, lambda image, shift=shift: 1 + (int(image[5:9]) + shift) % 3)
        files.append(str(sets.write_answers(folder / f"{rater}.json", tree)))
    return [*files, "--key", str(key_file)]


def test_import_then_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ratings.csv"
    assert rate.main("medsyn rate", ["import", *prepare(tmp_path), "--out", str(out)]) == 0
    assert "24 ratings and 6 pairs from 46 answers of 2 raters" in capsys.readouterr().out
    assert rate.main("medsyn rate", ["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "R1: 20 cases (8 / 6 / 6 rated 1 / 2 / 3, 0 not sure), 3 pairs, 3.0 s a case" in printed
    assert "warning: raters agree hardly better than by chance on all images" in printed
    assert rate.main("medsyn rate", ["report", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["rater"] for one in found["raters"]] == ["R1", "R2"]
    assert found["overall"]["images"] == sets.CASES + sets.DECOYS


def test_the_table_is_csv(tmp_path: Path) -> None:
    with pytest.raises(InputProblems, match=r"--out.*must be the name of a \.csv file"):
        rate.main("medsyn rate", ["import", *prepare(tmp_path), "--out", str(tmp_path / "ratings.html")])
