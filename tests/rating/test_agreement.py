"""Agreement, held to published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from medsyn.rating.agreement import (
    _gwet,
    bootstrap,
    detectability,
    estimate,
    gwet_ac2,
    icc,
    krippendorff_alpha,
    slope,
    weighted_kappa,
)

N = math.nan
# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), example C: 4 observers, 12 units, 5 categories
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
).T
# Shrout and Fleiss (1979), table 2: 6 targets, 4 judges
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def test_alpha_is_the_published_one() -> None:
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.815, abs=1e-3)


def test_icc_is_the_published_one() -> None:
    assert icc(JUDGES) == pytest.approx(0.290, abs=1e-3)
    assert icc(np.vstack([JUDGES, [N, 1, 1, 1]])) == pytest.approx(0.290, abs=1e-3), "incomplete rows do not count"


def test_gwet_is_the_published_one() -> None:
    """AC1 of the same data is .775 (Gwet 2014); AC2 with quadratic weights .914 by the author's package."""
    scale = np.arange(1.0, 6.0)
    assert _gwet(OBSERVERS, scale, np.eye(5)) == pytest.approx(0.77544, abs=1e-3)
    assert gwet_ac2(OBSERVERS, (1, 2, 3, 4, 5)) == pytest.approx(0.91400, abs=1e-3)


def test_kappa_by_hand() -> None:
    """Two raters, 4 images; observed weighted disagreement 1/4 * 1/4, by chance 1/4 * (1 + 1 + ...)."""
    pairs = np.array([[1, 1], [2, 2], [3, 3], [1, 2]], float)
    observed = (1 / 4) / 4
    first, second = np.array([2, 1, 1]) / 4, np.array([1, 2, 1]) / 4
    chance = sum(first[i] * second[j] * (i - j) ** 2 / 4 for i in range(3) for j in range(3))
    assert weighted_kappa(pairs) == pytest.approx(1 - observed / chance)


def test_kappa_is_that_of_scikit_learn() -> None:
    for trial in range(5):
        ratings = np.random.default_rng(trial).integers(1, 4 - trial % 2, (30, 2)).astype(float)
        expected = cohen_kappa_score(*ratings.astype(int).T, labels=(1, 2, 3), weights="quadratic")
        ratings = np.vstack([ratings, [N, 1], [2, N]])
        assert weighted_kappa(ratings) == pytest.approx(expected)


@pytest.mark.parametrize("statistic", [weighted_kappa, icc, krippendorff_alpha])
def test_ratings_that_are_all_the_same_say_nothing(statistic: object) -> None:
    assert math.isnan(statistic(np.full((5, 2), 2.0)))  # type: ignore[operator]


def test_gwet_stays_high_where_almost_all_ratings_are_the_same() -> None:
    ratings = np.full((50, 2), 3.0)
    ratings[0, 0] = 2
    assert gwet_ac2(ratings) > 0.98
    assert krippendorff_alpha(ratings) <= 0


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Raters who see the same truth through the same noise: the ICC of the continuous ratings is 1 / (1 + 1)."""
    generator, covered = np.random.default_rng(0), 0
    for trial in range(40):
        truth = generator.normal(size=(60, 1))
        found = estimate(icc, truth + generator.normal(size=(60, 2)), trial, resamples=200)
        covered += found.low <= 0.5 <= found.high
    assert 33 <= covered <= 40


def test_an_estimate_is_a_function_of_its_seed_and_leaves_single_ratings_out() -> None:
    ratings = np.array([[1, 1], [2, 3], [3, 3], [1, 2], [2, N], [N, N]], float)
    first, again = (estimate(krippendorff_alpha, ratings, 7, 50) for _ in range(2))
    assert first == again
    assert first.n == 4


def test_guessing_is_near_chance_and_agreeing_is_not() -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(1, 4, (80, 1)).astype(float)
    guessed = generator.integers(1, 4, (80, 2)).astype(float)
    assert estimate(krippendorff_alpha, guessed, 0, 200).is_near_chance
    assert not estimate(krippendorff_alpha, np.repeat(truth, 2, axis=1), 0, 200).is_near_chance
    assert not estimate(krippendorff_alpha, np.empty((0, 2)), 0).is_near_chance, "unknown is not low"


def test_detectability() -> None:
    """d_a of two normal distributions of spread 1 is their distance; here in three levels, so somewhat less."""
    same = np.array([1, 2, 3, 2, 1])
    assert detectability(same, same) == pytest.approx(0)
    assert detectability(np.full(10, 3), np.full(10, 1)) == pytest.approx(math.sqrt(2) * 2.5758, abs=1e-3)  # z(.995)
    assert detectability(np.full(10, 1), np.full(10, 3)) < 0
    assert math.isnan(detectability(np.array([]), same))


def test_slope_is_the_change_over_the_session() -> None:
    assert slope(np.array([0, 5, 10]), np.array([3, 2, 1])) == pytest.approx(-2)
    assert math.isnan(slope(np.array([4]), np.array([1])))


def test_bootstrap_of_something_unknown_has_no_interval() -> None:
    found = bootstrap(lambda rows: math.nan, np.ones((4, 2)), 0, 20)
    assert math.isnan(found.low) and math.isnan(found.value)
