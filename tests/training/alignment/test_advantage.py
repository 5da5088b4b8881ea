"""From scores to what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medsyn.training.alignment.advantage import accepted, pairs, parts, rewards, weighted

GROUP = np.array([0, 0, 0, 1, 1, 1])


def found(selector: list[float], policy: list[float] | None = None, spread: float = 0.0, **changes: Any) -> Any:
    scores = {
        "selector": np.array(selector),
        "selector_spread": np.full(6, spread),
        "policy": np.ones(6) if policy is None else np.array(policy),
        "policy_spread": np.full(6, spread),
    }
    finite = changes.pop("finite", np.ones(6, dtype=bool))
    return rewards(scores, finite, GROUP, changes.pop("spread_weight", 1.0))


def test_what_the_members_disagree_on_earns_nothing() -> None:
    sure, unsure = found([0.6] * 6), found([0.6] * 6, spread=0.3)
    np.testing.assert_allclose(sure.reward, 0.6)
    np.testing.assert_allclose(unsure.reward, 0.3 * 0.7)
    assert (unsure.error > sure.error).all()


def test_an_image_must_be_good_and_show_its_prompt() -> None:
    assert found([0.9, 0.9, 0.1, 0.9, 0.9, 0.1], [0.9, 0.1, 0.9, 0.9, 0.1, 0.9]).reward.argmax() in (0, 3)


def test_the_best_of_a_bad_group_is_no_better_than_it_is() -> None:
    """Advantages are in spreads of all candidates: nothing is blown up where a group's candidates are alike."""
    advantage = found([0.1, 0.11, 0.12, 0.2, 0.5, 0.9]).advantage
    assert abs(advantage[:3]).max() < 0.1 < abs(advantage[3:]).max()
    assert advantage[:3].sum() == pytest.approx(0)


@pytest.mark.parametrize(
    ("selector", "spread", "expected"),
    [
        ([0.1, 0.5, 0.9, 0.3, 0.2, 0.4], 0.0, [[2, 0], [5, 4]]),
        ([0.1, 0.5, 0.9, 0.3, 0.3, 0.3], 0.0, [[2, 0]]),  # no difference is no pair
        ([0.1, 0.5, 0.9, 0.30, 0.31, 0.32], 0.05, [[2, 0]]),  # nor is one within the reward's own error
    ],
)
def test_a_pair_is_the_best_against_the_worst(selector: list[float], spread: float, expected: list[list[int]]) -> None:
    assert pairs(found(selector, spread=spread), GROUP).rows.tolist() == expected


def test_images_that_are_not_finite_teach_nothing() -> None:
    finite = np.array([True, True, False, True, False, False])
    its = found([0.1, 0.5, 0.9, 0.3, 0.2, 0.4], finite=finite)
    assert pairs(its, GROUP).rows.tolist() == [[1, 0]]
    assert 2 not in weighted(its).rows
    assert np.isnan(its.reward[2])


def test_rejection_keeps_what_passes_and_is_above_its_group() -> None:
    its = found([0.1, 0.5, 0.9, 0.3, 0.2, 0.4])
    assert accepted(its, np.array([1, 1, 1, 1, 1, 0], dtype=bool)).rows.ravel().tolist() == [2]


def test_the_table_says_what_became_of_each() -> None:
    its = found([0.1, 0.5, 0.9, 0.3, 0.3, 0.3])
    assert parts(pairs(its, GROUP), its) == ["worst", "left out", "best", "left out", "left out", "left out"]
    assert parts(weighted(its), its)[:3] == ["worst", "left out", "best"]
