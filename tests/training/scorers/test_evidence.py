"""Figures with intervals, and Filter@k against its definition."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from medsyn.training.metrics import auroc
from medsyn.training.scorers.evidence import (
    best_of,
    evidence,
    interval,
    spearman,
    weighted_auroc,
    weighted_mean,
)


def test_a_weighted_auroc_is_that_of_repeated_images() -> None:
    rng = np.random.default_rng(0)
    scores, good = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.5
    times = rng.integers(0, 4, (5, 30)).astype(float)
    for row, value in zip(times.astype(int), weighted_auroc(scores, good)(times), strict=True):
        assert value == pytest.approx(auroc(np.repeat(scores, row), np.repeat(good, row)))
    assert np.isnan(weighted_auroc(scores, good)((good * 1.0)[None])).all()


def test_an_interval_is_over_groups_and_not_over_images() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=12), 50)
    alone = interval(np.arange(600).astype(str), weighted_mean(values))
    grouped = interval(np.repeat(np.arange(12), 50).astype(str), weighted_mean(values))
    assert alone.value == grouped.value and grouped.n == 12
    assert grouped.low is not None and alone.low is not None and grouped.high is not None and alone.high is not None
    assert grouped.high - grouped.low > 4 * (alone.high - alone.low)
    assert grouped == interval(np.repeat(np.arange(12), 50).astype(str), weighted_mean(values))


@pytest.mark.parametrize("good", [[True] * 4, [False] * 4, []])
def test_what_cannot_be_said_is_not_said(good: list[bool]) -> None:
    found = evidence(
        np.arange(len(good)) / 4, np.array(good) * 1.0, np.full(len(good), "CT"), np.arange(len(good)).astype(str)
    )
    assert found.auroc.value is None and found.auroc.low is None


def test_the_best_of_k_is_the_mean_over_all_draws() -> None:
    rng = np.random.default_rng(0)
    scores, quality = rng.random(8), rng.integers(0, 3, 8) / 2
    draws = [max(draw, key=lambda i: scores[i]) for draw in combinations(range(8), 4)]
    assert best_of(scores, quality, 4) == pytest.approx(float(np.mean(quality[draws])))
    assert best_of(scores[:3], quality[:3], 4) is None
    assert best_of(quality, quality, 4) > best_of(-quality, quality, 4)  # type: ignore[operator]


def test_a_rank_correlation_counts_ties_in_the_middle() -> None:
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 40])) == pytest.approx(1)
    assert spearman(np.array([1.0, 1, 2, 2]), np.array([0.0, 1, 0, 1])) == pytest.approx(0)
    assert spearman(np.ones(3), np.arange(3.0)) is None
