"""AUROC, calibration and thresholds against what they mean."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.training.metrics import auroc, calibration_error, threshold_keeping


def test_auroc_is_the_odds_that_good_beats_poor() -> None:
    rng = np.random.default_rng(0)
    scores, good = rng.integers(0, 6, 60) / 5, rng.random(60) < 0.4  # many ties
    pairs = scores[good][:, None] - scores[~good][None]
    assert auroc(scores, good) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@pytest.mark.parametrize(
    ("scores", "expected"), [([0.1, 0.2, 0.8, 0.9], 1.0), ([0.9, 0.8, 0.2, 0.1], 0.0), ([0.5] * 4, 0.5)]
)
def test_auroc_of_perfect_reversed_and_constant_scores(scores: list[float], expected: float) -> None:
    assert auroc(np.array(scores), np.array([False, False, True, True])) == expected


@pytest.mark.parametrize("good", [[True, True], [False, False], []])
def test_auroc_needs_both_kinds(good: list[bool]) -> None:
    assert auroc(np.arange(len(good), dtype=float), np.array(good, dtype=bool)) is None


def test_calibration_error_is_0_when_frequencies_are_the_probabilities() -> None:
    probabilities = np.repeat([0.25, 0.75], 4)
    outcomes = np.array([1, 0, 0, 0, 1, 1, 1, 0])
    assert calibration_error(probabilities, outcomes) == pytest.approx(0)
    assert calibration_error(probabilities, 1 - outcomes) == pytest.approx(0.5)


def test_calibration_error_takes_certainty_and_soft_outcomes() -> None:
    assert calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0
    assert calibration_error(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0


@pytest.mark.parametrize("count", [1, 5, 10, 37])
def test_a_threshold_keeps_its_share_and_no_higher_one_does(count: int) -> None:
    scores = np.random.default_rng(count).permutation(np.linspace(0, 1, count))
    threshold = threshold_keeping(scores, 0.9)
    assert (scores >= threshold).mean() >= 0.9
    assert (scores > threshold).mean() < 0.9
