"""The quality that answers tell, against what can be worked out otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm, spearmanr

from medsyn.rating.choose import choose_pairs, choose_ratings
from medsyn.rating.quality import (
    MARGIN,
    PAIR_NOISE,
    RATING_NOISE,
    STRICTNESS,
    Belief,
    Evidence,
    _intervals,
    _likelihood,
    infer,
    pair_information,
    rating_information,
)


def belief(mean: list[float], spread: list[float]) -> Belief:
    return Belief(np.array(mean), np.diag(np.square(spread)), (-0.7, 0.7))


def test_without_answers_everything_is_as_thought_before() -> None:
    found = infer(Evidence(3), prior=np.array([0.5, 0, -1]), prior_spread=np.array([1, 0.5, 2]))
    assert found.mean == pytest.approx([0.5, 0, -1])
    assert found.spread == pytest.approx([1, 0.5, 2])


def test_one_pair_against_the_integral() -> None:
    """The maximum and the curvature there of a density in one number: the difference of two images."""
    found = infer(Evidence(2, pairs=[(0, 1, "a")]))
    difference = found.mean[0] - found.mean[1]

    def density(d: float) -> float:
        return float(norm.cdf((d - MARGIN) / PAIR_NOISE) * norm.pdf(d, scale=np.sqrt(2)))

    grid = np.linspace(-4, 4, 80_001)
    assert difference == pytest.approx(grid[np.argmax([density(d) for d in grid[::10]]) * 10], abs=1e-3)
    total, _ = quad(density, -10, 10)
    mean, _ = quad(lambda d: d * density(d) / total, -10, 10)
    assert difference == pytest.approx(mean, abs=0.2), "the maximum is near the mean"
    assert found.mean.sum() == pytest.approx(0, abs=1e-6)


def test_slopes_are_those_of_the_likelihood() -> None:
    evidence = Evidence(3, [(0, 0, 1), (1, 0, 2), (2, 1, 3)], [(0, 1, "same"), (1, 2, "b"), (0, 2, "neither")])
    seen = _intervals(evidence, 2, (-0.6, 0.8))
    latent = np.array([0.3, -0.4, 1.1, 0.2, -0.1])

    def log_likelihood(at: np.ndarray) -> np.ndarray:
        value = seen.rows @ at
        return np.log(norm.cdf((seen.high - value) / seen.noise) - norm.cdf((seen.low - value) / seen.noise))

    slope, curvature = _likelihood(seen, latent)
    step = 1e-5
    for number, row in enumerate(seen.rows.toarray()):
        along = row / (row @ row)
        above, at, below = (log_likelihood(latent + k * step * along)[number] for k in (1, 0, -1))
        assert slope[number] == pytest.approx((above - below) / (2 * step), abs=1e-5)
        assert curvature[number] == pytest.approx(-(above - 2 * at + below) / step**2, abs=1e-3)


def test_far_out_answers_keep_their_digits() -> None:
    evidence = Evidence(2, pairs=[(0, 1, "b")] * 200)
    found = infer(evidence, prior=np.array([30.0, -30.0]))
    assert np.isfinite(found.mean).all()
    assert found.mean[0] - found.mean[1] < 20


def test_many_answers_tell_the_order_and_a_strict_rater_does_not_disturb_it() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=40)
    evidence = Evidence(40)
    for rater, strictness in enumerate((-0.8, 0.0, 0.8)):
        for image in range(40):
            seen = truth[image] + strictness + generator.normal(0, 0.8)
            evidence.ratings.append((image, rater, 1 + int(seen > -0.7) + int(seen > 0.7)))
    ratings_only = infer(evidence)
    assert spearmanr(ratings_only.mean, truth).statistic > 0.7
    for _ in range(400):
        first, second = (int(image) for image in generator.choice(40, 2, replace=False))
        answer = "a" if truth[first] - truth[second] + generator.normal(0, 0.9) > 0 else "b"
        evidence.pairs.append((first, second, answer))
    both = infer(evidence)
    assert spearmanr(both.mean, truth).statistic > max(0.88, spearmanr(ratings_only.mean, truth).statistic)
    assert (both.spread < ratings_only.spread).all()
    assert np.mean(np.abs(both.mean - truth) < 2 * both.spread) > 0.85, "the spread is honest"


def test_information_against_the_integral() -> None:
    one = belief([0.4], [0.8])
    noise = np.hypot(RATING_NOISE, STRICTNESS)

    def chances(quality: float) -> np.ndarray:
        low, high = (norm.cdf((edge - quality) / noise) for edge in one.thresholds)
        return np.array([low, high - low, 1 - high])

    def entropy(its: np.ndarray) -> float:
        return float(-(its * np.log(its)).sum())

    weight = norm(0.4, 0.8).pdf
    mean = np.array([quad(lambda q, k=k: chances(q)[k] * weight(q), -8, 8)[0] for k in range(3)])
    inside, _ = quad(lambda q: entropy(chances(q)) * weight(q), -8, 8)
    assert rating_information(one)[0] == pytest.approx(entropy(mean) - inside, abs=1e-4)


def test_what_is_uncertain_says_more() -> None:
    ratings = rating_information(belief([0, 0, 3], [1, 0.2, 1]))
    assert ratings[0] > max(ratings[1], ratings[2])
    pairs = pair_information(belief([0, 0.1, 3, 0], [0.7, 0.7, 0.7, 0.1]), np.array([0, 0, 0]), np.array([1, 2, 3]))
    assert pairs[0] > max(pairs[1], pairs[2])


def test_ratings_are_chosen_from_all_strata_and_where_least_is_known() -> None:
    of = np.random.default_rng(0)
    known = belief([0] * 8, [0.1, 1, 0.1, 1, 1, 0.1, 1, 0.1])
    strata = ["CT", "CT", "CT", "CT", "MRI", "MRI", "MRI", None]
    assert set(choose_ratings(known, strata, 4, of)) == {1, 3, 4, 6}
    assert set(choose_ratings(known, strata, 99, of)) == set(range(7))
    rare = ["CT"] * 6 + ["MRI", None]
    assert 6 in choose_ratings(known, rare, 2, of)


def test_pairs_are_of_one_stratum_and_spread_out() -> None:
    of = np.random.default_rng(0)
    known = belief(list(np.linspace(-1, 1, 12)), [0.5] * 12)
    strata = [("CT", "MRI")[n % 2] for n in range(11)] + [None]
    pairs = choose_pairs(known, strata, 9, of)
    assert len(pairs) == len(set(pairs)) == 9
    assert all(strata[one] == strata[other] is not None for one, other in pairs)
    assert max(np.bincount(np.ravel(pairs))) <= 2
    assert choose_pairs(known, [None] * 12, 3, of) == []
