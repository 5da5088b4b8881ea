"""What the Selector's benchmark asks and how it counts; no scorer is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsyn.models.scores import Card, Scores, Threshold
from medsyn.training.scorers import stages
from medsyn.training.scorers.ways import WAYS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture
def phantoms(folder: Path) -> Any:
    from scoring import images

    return images.phantoms(folder / "set", 6)  # drawn once


class ByNoise:
    """A Selector that finds flat images good."""

    card = Card(thresholds={name: Threshold(threshold=0.5, good=1, poor=1) for name in ("CT", "MRI")})

    def score(self, pixels: torch.Tensor, modality: str | None = None) -> Scores:
        score = 1 - pixels.diff(dim=-1).abs().mean(dim=(1, 2, 3))
        return Scores(score, torch.zeros_like(score), score < 0)


@contextmanager
def untrained(images: Any, without: Any, seed: int, changes: Sequence[str] = (), families: Any = ()) -> Iterator[Any]:
    from scoring import selectors

    yield ByNoise(), selectors.settings(images, Path("nowhere"), seed, ["data.resolution=32"])


def test_every_row_is_printed(
    phantoms: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import scorers
    from scoring import selector

    monkeypatch.setattr(selector, "trained", untrained)
    monkeypatch.setattr(scorers, "phantoms", lambda folder, count: phantoms)
    scorers.main(["--rows", *scorers.CROSSED, "kinds", "--families", "noise", "--seeds", "2", "--folds", "2"])
    printed = capsys.readouterr().out
    assert "real images: skipped" in printed
    for name in ("AUROC", "worst modality", "calibration", "pass", "rejected at its own threshold: shuffled"):
        assert name in printed
    assert "triples in order: blur" in printed
    assert "never shown: coarse_noise" in printed
    assert "nan" not in printed


def test_a_group_is_in_one_fold_and_its_images_are_kept_from_training(phantoms: Any, tmp_path: Path) -> None:
    folds = phantoms.folds(3, 0)
    assert folds.keys() == {one.group for one in phantoms.ratings}
    assert folds == phantoms.folds(3, 0) != phantoms.folds(3, 1)
    sizes = np.bincount(list(folds.values()))
    assert sizes.max() - sizes.min() <= 1
    without = {group for group, fold in folds.items() if fold == 0}
    kept = [one for one in phantoms.ratings if one.group not in without]
    phantoms.write(tmp_path, kept, without)
    assert len((tmp_path / "ratings.csv").read_text().splitlines()) == 1 + len(kept)


def test_real_images_are_grouped_by_the_patient_that_they_are_made_from(tmp_path: Path) -> None:
    from scoring import images

    (tmp_path / "provenance.csv").write_text("path,patient\na.png,p1\nb.png,p1\n")
    (tmp_path / "ratings_provenance.csv").write_text(
        "image_path,base,detail\nr1.png,a.png,blur/mild\nr2.png,b.png,none\nr3.png,else.png,none\n"
    )
    header = "image_path,rating,modality,expert_level,prompt\n"
    (tmp_path / "ratings.csv").write_text(header + "r1.png,2,ct,3,CT: x\nr2.png,3,CT,3,CT: x\nr3.png,1,CT,3,CT: x\n")
    found = images.real(tmp_path).ratings
    assert [(one.group, one.family) for one in found] == [("p1", "sharpness"), ("p1", ""), ("else.png", "unknown")]


def test_triples_are_well_posed_and_broken_images_are_broken(phantoms: Any) -> None:
    from scoring import selector

    pixels = phantoms.pixels([one for one in phantoms.judged() if one.is_clean][:4], 32)
    for kind in selector.TRIPLES:
        for number, mild, strong in selector.triples(pixels, kind, 0):
            clean = pixels[number].float() / 255
            before, after = (selector.amount(clean, one.float() / 255) for one in (mild, strong))
            assert after >= selector.APART * before > 0
    kinds = dict(selector.broken(pixels, 0))
    assert kinds.keys() == {"shuffled", "stitched", "noise"}
    for changed in kinds.values():
        assert changed.shape == pixels.shape
        assert (changed != pixels).flatten(1).any(dim=1).all()
    assert torch.equal(kinds["shuffled"].flatten(1).sort().values, pixels.flatten(1).sort().values)


def test_the_families_of_ways_are_all_ways_once() -> None:
    from scoring import faults

    assert sorted(way for family in faults.FAMILIES for way in family) == sorted(WAYS)


def test_what_is_left_out_is_left_out_in_the_stage_and_only_there() -> None:
    from scoring import selectors

    whole: Any = stages.degraded_comparisons
    with selectors.never_shown(["noise"]):
        inside: Any = stages.degraded_comparisons
        assert "noise" not in inside.keywords["kinds"]
        assert "blur" in inside.keywords["kinds"]
    assert stages.degraded_comparisons is whole


def test_what_thresholds_let_through_is_told_by_what_it_is_and_by_modality() -> None:
    from scoring import passing, selector
    from scoring.images import Rating

    answers = selector.Answers()
    for number, way in enumerate(["two steps", "two steps", "shuffled"]):
        image = Rating("", 3, "CT", 3, "", f"prompt {number}")
        answers.add(0, image, f"{passing.BAD_SAMPLES}: {way}", 0.5, way == "two steps")
    found = {one.name: one.interval.value for one in passing._described("auto", answers)}
    whole = f"auto: {passing.BAD_SAMPLES}"
    assert found == {whole: pytest.approx(2 / 3), f"{whole}, CT": pytest.approx(2 / 3)}


def test_the_worst_of_figures_is_named() -> None:
    from scoring import figures

    seeds, groups = np.array([0, 0, 1, 1]), np.array(["a", "b", "a", "b"])
    values = {"low": np.array([0.0, 0.5, 0.0, 0.5]), "high": np.ones(4)}
    found = [
        figures.figure(name, "", seeds, groups, lambda places, its=its: figures_mean(its[places]))
        for name, its in values.items()
    ]
    assert figures.worst("worst", "", found).name == "worst: low"
    assert found[0].by_seed == [0.25, 0.25]
    assert found[0].interval.value == 0.25


def figures_mean(values: np.ndarray) -> Any:
    from medsyn.training.scorers.evidence import weighted_mean

    return weighted_mean(values)
