from __future__ import annotations

from itertools import pairwise

import pytest

from medsyn.data.tables.split import is_held_out

KEYS = [f"patient-{number}" for number in range(20_000)]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_the_fraction_is_held_out(fraction: float) -> None:
    share = sum(is_held_out(key, fraction, 0) for key in KEYS) / len(KEYS)
    assert share == pytest.approx(fraction, abs=0.014)  # four standard deviations of 0.5


def test_nothing_and_everything() -> None:
    assert not any(is_held_out(key, 0.0, 0) for key in KEYS)
    assert all(is_held_out(key, 1.0, 0) for key in KEYS)


def test_the_split_never_changes() -> None:
    """Written down: a release that answered otherwise would move training images into the held-out set."""
    assert [n for n, key in enumerate(KEYS[:40]) if is_held_out(key, 0.2, 7)] == [0, 2, 3, 16, 18, 20, 23, 25, 34]


def test_a_larger_fraction_holds_out_the_same_and_more() -> None:
    small = {key for key in KEYS if is_held_out(key, 0.1, 3)}
    large = {key for key in KEYS if is_held_out(key, 0.3, 3)}
    assert small < large


def test_another_seed_is_an_independent_split() -> None:
    both = sum(is_held_out(key, 0.5, 1) and is_held_out(key, 0.5, 2) for key in KEYS) / len(KEYS)
    assert both == pytest.approx(0.25, abs=0.015)


def test_keys_in_a_row_are_not_held_out_together() -> None:
    """Numbered files would split in runs under a weak hash."""
    held = [is_held_out(key, 0.5, 0) for key in KEYS]
    changes = sum(before != after for before, after in pairwise(held)) / len(KEYS)
    assert changes == pytest.approx(0.5, abs=0.02)
