"""Paired figures against known answers."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.evaluation import paired
from medsyn.models.feature_distances import among


def features(shift: float = 0.0, count: int = 60, of: int = 0) -> np.ndarray:
    return np.random.default_rng(of).normal(shift, 1, (count, 8)).astype(np.float32)


def distance(images: np.ndarray, real: np.ndarray) -> paired.Figure:
    return paired.distance(images, real, among(real))


def test_a_draw_has_all_images_of_a_prompt_alike_and_as_many_prompts_as_there_are() -> None:
    drawn = paired.draws(["a", "a", "b", "c"], 1, resamples=50)
    assert drawn.shape == (50, 4) and (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 1:].sum(axis=1) == 3).all()
    assert (drawn == paired.draws(["a", "a", "b", "c"], 1, resamples=50)).all()


def test_pairing_sees_a_small_gain_that_unpaired_sets_would_hide() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 200)
    before, after = hard, hard + 0.05 + rng.normal(0, 0.05, 200)
    drawn = paired.draws(range(200), 3)
    gain = paired.estimate(paired.difference(paired.mean(after), paired.mean(before)), drawn, 200)
    alone = paired.estimate(paired.mean(after), drawn, 200)
    assert gain["low"] is not None and gain["high"] is not None and alone["low"] is not None
    assert 0.03 < gain["low"] < 0.05 < gain["high"] < 0.07
    assert alone["high"] - alone["low"] > 0.2  # type: ignore[operator]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(1), 0
    for number in range(200):
        values = (rng.random(60) < 0.3).astype(float)
        drawn = paired.draws(range(60), number, resamples=200)
        found = paired.estimate(paired.mean(values), drawn, 60)
        held += found["low"] <= 0.3 <= found["high"]  # type: ignore[operator]
    assert 0.88 <= held / 200 <= 0.99


def test_what_says_nothing_is_left_out_and_few_prompts_have_no_interval() -> None:
    values = np.array([1.0, np.nan, 0.0, 1.0])
    drawn = paired.draws(["a", "b", "c", "d"], 0)
    assert paired.estimate(paired.mean(values), drawn, 4) == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    nothing = paired.estimate(paired.mean(np.full(4, np.nan)), drawn, 40)
    assert nothing == {"value": None, "low": None, "high": None}
    assert paired.estimate(paired.mean(np.empty(0)), paired.draws([], 0), 0)["value"] is None


def test_the_distance_is_that_of_clean_fid_on_whole_sets() -> None:
    kernel_distance = pytest.importorskip("cleanfid.fid").kernel_distance
    one, real = features(0.4), features(0, 50, 1)
    whole = distance(one, real)(np.ones((1, 60), np.float32))[0]
    same = distance(one[:50], real)(np.ones((1, 50), np.float32))[0]
    expected = kernel_distance(one[:50], real, num_subsets=1, max_subset_size=50)
    assert same == pytest.approx(expected, rel=1e-6) and whole > 0


def test_a_draw_is_the_distance_of_its_images_without_pairs_of_copies() -> None:
    one, real = features(0.5, 5), features(0, 20, 1)
    drawn = np.array([[2, 1, 0, 1, 1]], np.float32)
    rows = np.repeat(np.arange(5), drawn[0].astype(int))
    own = ((one[rows] @ one[rows].T / 8 + 1) ** 3).astype(float)
    own[rows[:, None] == rows[None]] = 0
    pairs = (rows[:, None] != rows[None]).sum()
    among = (real @ real.T / 8 + 1).astype(float) ** 3
    np.fill_diagonal(among, 0)
    expected = own.sum() / pairs + among.sum() / (20 * 19) - 2 * ((one[rows] @ real.T / 8 + 1) ** 3).mean()
    assert distance(one, real)(drawn)[0] == pytest.approx(expected, rel=1e-4)


def test_recall_of_the_same_images_is_whole_and_of_a_collapsed_set_is_not() -> None:
    real = features(0, 80)
    collapsed = features(0, 80, 2) * 0.05
    found = paired.recall_change(features(0, 80, 3), collapsed, real, list(range(80)), 0)
    assert found["before"] > 0.6 and found["after"] < 0.1  # type: ignore[operator]
    assert found["high"] < 0  # type: ignore[operator]
    still = paired.recall_change(real, real, real, list(range(80)), 0)
    assert (still["change"], still["low"], still["high"]) == (0, 0, 0)


def test_pairs_weigh_as_often_as_both_of_their_images_are_drawn() -> None:
    figure = paired.over_pairs(np.array([[0, 1], [1, 2]]), np.array([1.0, 4.0]))
    found = figure(np.array([[1, 2, 0], [1, 1, 2], [3, 0, 3]], np.float32))
    assert found[:2].tolist() == [1.0, 3.0] and np.isnan(found[2])
