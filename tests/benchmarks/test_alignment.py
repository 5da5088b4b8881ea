"""What the benchmark of alignment counts, and the world that it makes; no model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


def seen(centre: float = 0.0, spread: float = 1.0, good: float = 0.5, count: int = 60, own_seed: int = 0) -> Any:
    """Images around a centre, beside good phantoms around 0."""
    from aligning.figures import Seen

    rng = np.random.default_rng(own_seed)
    is_good = np.arange(count) < good * count
    features = centre + spread * rng.standard_normal((count, 8))
    return Seen(is_good, is_good, features, np.random.default_rng(99).standard_normal((80, 8)), 1.0 * is_good)


def test_images_like_the_good_ones_are_near_and_cover_them() -> None:
    alike, far, narrow = seen().figures(), seen(centre=3).figures(), seen(spread=0.05).figures()
    assert abs(alike["KID"]) < 0.3 < 3 < far["KID"]
    assert alike["recall"] > 0.8 > 0.1 > far["recall"]
    assert narrow["recall"] < 0.2 and narrow["diversity"] < 0.1 * alike["diversity"]


def test_an_image_counted_twice_is_not_paired_with_itself() -> None:
    its = seen()
    twice = its.figures_of(np.full(60, 2.0), np.ones(80))
    assert twice["good"] == its.figures()["good"]
    assert its.figures_of(np.eye(60)[0] * 5 + np.eye(60)[1], np.ones(80))["diversity"] == pytest.approx(
        np.linalg.norm(its.features[0] - its.features[1])
    )


def test_differences_are_paired() -> None:
    from aligning.figures import estimate, gain

    world = {"before": seen(good=0.25), "aligned": seen(good=0.75), "same": seen(good=0.25)}
    found = estimate(
        [world], {"more": gain("aligned", "before", "good"), "none": gain("same", "before", "KID")}, draws=200
    )
    assert 0.3 < found["more"].low < found["more"].value == 0.5 < found["more"].high < 0.7
    assert (found["none"].low, found["none"].high) == (0, 0)


def test_what_differs_between_campaign_seeds_is_in_the_interval() -> None:
    from aligning.figures import estimate, of_arm

    combine = {"good": of_arm("aligned", "good")}
    alike = estimate([{"aligned": seen(good=0.5, own_seed=place)} for place in range(3)], combine, draws=200)
    apart = estimate([{"aligned": seen(good=good)} for good in (0.1, 0.5, 0.9)], combine, draws=200)
    assert apart["good"].high - apart["good"].low > 3 * (alike["good"].high - alike["good"].low)


def test_an_aim_that_compares_is_reached_by_its_interval() -> None:
    from aligning.aims import AIMS
    from aligning.figures import Estimate

    better = AIMS["good: aligned - plain"]
    assert better.is_reached(Estimate(0.05, 0.01, 0.1)) and not better.is_reached(Estimate(0.05, -0.01, 0.1))
    no_worse = AIMS["KID: aligned - plain"]
    assert no_worse.is_reached(Estimate(-0.1, -0.2, 0.01)) and not no_worse.is_reached(Estimate(0.0, -0.1, 0.1))


def test_the_world_lies_as_often_as_it_says_and_calls_everything_excellent() -> None:
    from aligning import world

    shown = world.training_images(["Brain MRI", "Chest X-ray"], 300, 1)
    assert all(one.caption.endswith("excellent image quality") for one in shown)
    assert np.mean([one.is_true for one in shown]) == pytest.approx(1 - world.LYING, abs=0.05)
    assert np.mean([one.phantom.quality == 1 for one in shown]) == pytest.approx(world.POOR, abs=0.05)
    assert shown == world.training_images(["Brain MRI", "Chest X-ray"], 300, 1)
    assert len(world.captions(["Brain MRI"])) == 5 and len(world.captions(["OCT"])) == 6


def test_raters_err_each_in_their_own_way_and_give_what_is_wrong_the_lowest_rating() -> None:
    from aligning import world

    rng = np.random.default_rng(0)
    right, quality = rng.random(600) < 0.6, rng.integers(0, 3, 600)
    votes = [world.rate(right, quality, rater, 1) for rater in range(world.RATERS)]
    assert {1, 2, 3} == set(np.unique(votes))
    assert 0.4 < np.corrcoef(votes[0], votes[1])[0, 1] < 0.8
    assert votes[0][~right].mean() < 1.5 < 2.2 < votes[0][right & (quality == 2)].mean()


def test_of_several_attempts_the_one_with_the_highest_reward_is_the_image() -> None:
    from aligning.campaign import Candidates

    def attempt(grey: int, rewards: list[float]) -> Candidates:
        return Candidates(np.full((1, 2, 1, 4, 4), grey, np.uint8), np.zeros((1, 2)), np.array([rewards]), [])

    best = attempt(1, [0.5, 0.1]).with_more(attempt(2, [0.4, 0.3])).best
    assert best.shape == (2, 3, 4, 4) and best[:, 0, 0, 0].tolist() == [1, 2]


def test_the_arms_that_aims_compare_are_made() -> None:
    """Importing them shows as well that the stages they call are called what they are."""
    from aligning import aims, arms

    named = {word for word in arms.ARMS if word in Path(aims.__file__).read_text()}
    assert {"before", "aligned", "plain fine-tune", "best of 4"} <= named
