"""Probabilities that mean what they say, by modality; and what is unlike everything that was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsyn.models.ensemble import Ensemble
from medsyn.models.quality import FEATURES
from medsyn.models.scores import Card
from medsyn.training.metrics import calibration_error
from medsyn.training.scorers.calibration import (
    calibrated,
    cross_fitted,
    fit_lines,
    lines_of,
    set_calibration,
    set_familiarity,
)
from medsyn.training.scorers.exam import Comparison, Exam

NAMES = ["CT", "MRI"]


def exam(count: int, share_ct: float = 0.5, seed: int = 0) -> tuple[Exam, np.ndarray]:
    """Images whose logits are three times too large, and in MRI also shifted: (exam, logits)."""
    rng = np.random.default_rng(seed)
    modality = np.where(rng.random(count) < share_ct, "CT", "MRI")
    truth = rng.normal(size=count) * 1.5
    target = (rng.random(count) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    logits = 3 * truth + np.where(modality == "MRI", 4.0, 0.0)
    groups = np.array([str(number) for number in range(count)])
    fold = np.arange(count) % 5
    return Exam(target, np.ones(count), fold, groups, modality, Comparison.none()), logits


def test_calibration_on_other_images_is_better_than_none_in_every_modality() -> None:
    known, logits = exam(600)
    new, new_logits = exam(2000, seed=1)
    lines = fit_lines(logits, known, known.rated, NAMES)
    scores = calibrated(new_logits, new.modality, lines, NAMES)
    for name in NAMES:
        its = new.modality == name
        before = calibration_error(1 / (1 + np.exp(-new_logits[its])), new.target[its])
        assert calibration_error(scores[its], new.target[its]) < min(0.08, before / 2)


def test_a_fold_is_calibrated_without_itself() -> None:
    known, logits = exam(100)
    scores = cross_fitted(logits, known, NAMES, None)
    others = known.fold != 2
    lines = fit_lines(logits, known, known.rated & others, NAMES)
    expected = calibrated(logits[~others], known.modality[~others], lines, NAMES)
    np.testing.assert_allclose(scores[~others], expected)
    known.target[~others] = 1 - known.target[~others]
    np.testing.assert_allclose(cross_fitted(logits, known, NAMES, None)[~others], expected)


@pytest.mark.parametrize(("number", "own"), [(3, False), (150, True)])
def test_few_images_of_a_modality_move_its_line_little(number: int, own: bool) -> None:
    known, logits = exam(400, share_ct=1 - number / 400)
    lines = fit_lines(logits, known, known.rated, NAMES)
    assert (abs(lines[2][1] - lines[1][1]) > 0.8) == own


def test_without_ratings_a_modality_has_the_common_line_and_what_it_had_before_stays() -> None:
    known, logits = exam(200, share_ct=1)
    lines = fit_lines(logits, known, known.rated, NAMES)
    assert lines[2] == lines[0]
    before = [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)]
    again = fit_lines(logits, known, known.rated, NAMES, before)
    assert again[0] == before[0] and again[2] == before[2] and again[1] != before[1]


def test_perfect_answers_leave_the_doubt_that_their_number_leaves() -> None:
    target = np.array([0.0, 1.0] * 10)
    fold, groups = np.arange(20) % 2, np.array([str(number) for number in range(20)])
    its = Exam(target, np.ones(20), fold, groups, np.full(20, "CT"), Comparison.none())
    logits = np.where(target == 1, 50.0, -50.0)
    scores = calibrated(logits, its.modality, fit_lines(logits, its, its.rated, ["CT"]), ["CT"])
    assert 0.8 < scores.max() < 0.99 and 0.01 < scores.min() < 0.2


def test_an_ensemble_calibrates_by_the_lines_that_it_was_given() -> None:
    scorer = Ensemble([], Card(modalities=NAMES))
    lines = [(0.1, 0.2), (0.3, -0.4), (-0.5, 0.6)]
    set_calibration(scorer, lines)
    logits = np.array([-1.0, 2.0])
    for name in (*NAMES, "OCT"):
        scores = scorer.combine(torch.tensor([logits], dtype=torch.float32), torch.zeros(2, len(FEATURES)), name).score
        np.testing.assert_allclose(scores, calibrated(logits, np.full(2, name), lines, NAMES), atol=1e-6)
    assert [pytest.approx(line, abs=1e-6) for line in lines] == lines_of(scorer, NAMES)


def test_what_is_far_from_every_modality_is_unfamiliar_and_new_groups_are_not() -> None:
    rng = np.random.default_rng(0)
    size = Ensemble([]).familiarity.scale.shape[0]
    scorer = Ensemble([], Card(modalities=NAMES))
    modality = np.array(NAMES * 100)
    centre = np.where(modality == "MRI", 3.0, -3.0)[:, None]
    groups = np.array([f"patient {number // 4}" for number in range(200)])

    def draw() -> np.ndarray:
        return centre + rng.normal(size=(200, size)) * np.linspace(0.1, 2, size)

    set_familiarity(scorer, draw(), modality, groups)
    between = torch.zeros(1, size)
    far = torch.from_numpy(draw()).float() + 30
    assert float(scorer.familiarity(torch.from_numpy(draw()).float()).float().mean()) < 0.1
    assert bool(scorer.familiarity(far).all()) and bool(scorer.familiarity(between).all())


def test_from_a_handful_of_images_nothing_is_called_unfamiliar() -> None:
    scorer = Ensemble([], Card(modalities=NAMES))
    set_familiarity(scorer, np.zeros((8, len(FEATURES))), np.full(8, "CT"), np.arange(8).astype(str))
    assert not scorer.familiarity(torch.full((3, len(FEATURES)), 1e6)).any()
