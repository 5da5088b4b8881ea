"""The benchmark of the search for copies: what it reads, and what it prints."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import copies
from medsyn.disk import read_json
from medsyn.evaluation.memorization import planted
from tests.evaluation.memorization.conftest import draw


def test_it_counts_what_is_found_of_copies_in_images_whose_patients_another_table_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, patients = ["path,Text,modality"], ["path,patient"]
    for number in range(5):
        Image.fromarray(draw("OCT", number).repeat(2, axis=0).repeat(2, axis=1)).save(tmp_path / f"{number}.png")
        rows.append(f'{number}.png,"OCT: drusen",OCT')
        patients.append(f"{number}.png,{min(number, 3)}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "provenance.csv").write_text("\n".join(patients) + "\n")
    monkeypatch.setattr(planted, "CHANGES", {"flip": planted.CHANGES["flip"]})
    words = ["metadata.csv", "--patients", "provenance.csv", "--planted", "1", "--honest", "2", "--json", "found.json"]
    monkeypatch.setattr(sys, "argv", ["copies.py", *words])
    monkeypatch.chdir(tmp_path)
    assert copies.main() == 0
    found = read_json(tmp_path / "found.json")
    assert found["recall"] == {"flip": [1, 1], "left half": [found["recall"]["left half"][0], 1]}
    assert found["patients"] == 2
    assert "honest images that pass" in capsys.readouterr().out


def test_small_images_stay_as_they_are() -> None:
    pixels = draw("OCT", 0)
    assert copies.reduced(pixels, 64) is pixels
    assert copies.reduced(pixels, 32).shape == (32, 32)
    assert copies.reduced(np.full((64, 64), 7, np.uint8), 16).tolist() == [[7] * 16] * 16
