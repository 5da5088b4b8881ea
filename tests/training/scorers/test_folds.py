"""Folds: whole groups, both kinds of images everywhere, the same ones every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medsyn.training.scorers.folds import NOBODY, split_into_folds


def images(groups: int = 23, seed: int = 0) -> list[tuple[str, str, bool]]:
    """(group, modality, good) of images in groups of one to four."""
    rng = np.random.default_rng(seed)
    return [
        (f"patient {group}", "CT" if group % 3 else "MRI", bool(rng.random() < 0.6))
        for group in range(groups)
        for _ in range(rng.integers(1, 5))
    ]


def test_a_group_is_never_split_and_every_fold_has_its_share_of_every_kind() -> None:
    rows = images()
    folds = split_into_folds(rows, 5, 0)
    assert folds.count == 5 and set(folds.of_group) == {group for group, _, _ in rows}
    kinds = Counter((modality, good) for _, modality, good in rows)
    for kind, number in kinds.items():
        shares = Counter(int(folds.of([group])[0]) for group, *its in rows if tuple(its) == kind)
        assert all(abs(shares[fold] - number / 5) <= 3 for fold in range(5)), (kind, shares)


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    rows = images()
    one, other = split_into_folds(rows, 5, 0), split_into_folds(rows[::-1], 5, 0)
    assert one.of_group == other.of_group
    assert one.of_group != split_into_folds(rows, 5, 1).of_group


@pytest.mark.parametrize(
    ("good", "poor", "count"), [(9, 3, 3), (2, 9, 2), (9, 1, 1), (1, 9, 1), (9, 0, 1), (0, 0, 1), (9, 9, 5)]
)
def test_there_are_no_more_folds_than_groups_of_either_kind(good: int, poor: int, count: int) -> None:
    rows = [(f"g{n}", "CT", True) for n in range(good)] + [(f"p{n}", "CT", False) for n in range(poor)]
    folds = split_into_folds(rows, 5, 0)
    assert folds.count == count
    if count == 1:
        assert folds.of(["g0", "elsewhere"]).tolist() == [NOBODY, NOBODY]


def test_every_member_learns_from_both_kinds() -> None:
    rows = [(f"g{n}", "CT", n % 10 < 7) for n in range(40)]
    folds = split_into_folds(rows, 5, 0)
    for fold in range(5):
        assert {good for group, _, good in rows if folds.of_group[group] != fold} == {True, False}


def test_a_group_without_ratings_has_a_fold_by_lot_that_stays() -> None:
    folds = split_into_folds(images(), 5, 0)
    names = [f"prompt {number}" for number in range(200)]
    drawn = folds.of(names)
    assert Counter(drawn.tolist()).keys() == set(range(5)) and np.array_equal(drawn, folds.of(np.array(names)))
