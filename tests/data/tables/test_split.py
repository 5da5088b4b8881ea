from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.data.tables.split import groups, held_out_groups, hold_out

IMAGES = [(f"image-{number}", "MRI") for number in range(2000)]


def shares(members: list[tuple[str, str]], fraction: float, seed: int = 0) -> dict[str, tuple[int, int]]:
    """(held out, all) of each stratum."""
    chosen = held_out_groups(members, fraction, seed)
    held = Counter(stratum for key, stratum in members if key in chosen)
    return {stratum: (held[stratum], number) for stratum, number in Counter(its for _, its in members).items()}


@pytest.mark.parametrize(("number", "fraction", "held"), [(30, 0.2, 6), (31, 0.2, 6), (33, 0.2, 7), (2000, 0.05, 100)])
def test_the_share_is_exact_whatever_the_seed(number: int, fraction: float, held: int) -> None:
    assert {shares(IMAGES[:number], fraction, seed)["MRI"] for seed in range(5)} == {(held, number)}


def test_every_modality_has_its_share() -> None:
    members = [(f"{modality}-{n}", modality) for modality, size in (("CT", 10), ("MRI", 30)) for n in range(size)]
    assert shares(members, 0.3) == {"CT": (3, 10), "MRI": (9, 30)}


@pytest.mark.parametrize("fraction", [1e-9, 0.2, 0.999999])
def test_both_sides_have_something_where_there_are_two_patients(fraction: float) -> None:
    assert shares([*[("one", "CT")] * 7, *[("two", "CT")] * 9], fraction)["CT"][0] in (7, 9)
    assert shares([("a", "CT"), ("b", "CT")], fraction) == {"CT": (1, 2)}


def test_one_patient_is_trained_on() -> None:
    assert held_out_groups([("one", "CT")] * 5, 0.5, 0) == set()
    assert held_out_groups([], 0.5, 0) == set()


@pytest.mark.parametrize("seed", range(5))
def test_patients_of_any_size_come_close_to_the_share(seed: int) -> None:
    sizes = random.Random(seed)
    members = [(f"p{p}", "CT") for p in range(60) for _ in range(sizes.randint(1, 12))]
    held, number = shares(members, 0.2, seed)["CT"]
    assert abs(held - 0.2 * number) <= 1


def test_a_patient_of_two_modalities_is_on_one_side_and_both_shares_are_close() -> None:
    members = [(f"p{p}", modality) for p in range(40) for modality in ("CT", "MRI") for _ in range(1 + p % 3)]
    for held, number in shares(members, 0.25).values():
        assert abs(held - number / 4) <= 2


def test_a_rare_modality_gets_its_share_first() -> None:
    members = [*((f"p{n % 8}", "CT") for n in range(10)), ("p2", "MRI"), ("p3", "MRI")]
    assert {seed: shares(members, 0.4, seed) for seed in range(9)} == {
        seed: {"CT": (4, 10), "MRI": (1, 2)} for seed in range(9)
    }


def test_the_order_of_the_rows_does_not_matter() -> None:
    members = [(f"p{n % 50}", ("CT", "MRI")[n % 3 == 0]) for n in range(400)]
    shuffled = random.Random(1).sample(members, len(members))
    assert held_out_groups(members, 0.2, 3) == held_out_groups(shuffled, 0.2, 3)


def test_a_larger_fraction_holds_out_the_same_and_more() -> None:
    assert held_out_groups(IMAGES, 0.1, 3) < held_out_groups(IMAGES, 0.3, 3)


def test_another_seed_is_an_independent_split() -> None:
    both = held_out_groups(IMAGES, 0.5, 1) & held_out_groups(IMAGES, 0.5, 2)
    assert len(both) / len(IMAGES) == pytest.approx(0.25, abs=0.05)


def test_numbered_files_are_not_held_out_in_runs() -> None:
    chosen = held_out_groups(IMAGES, 0.5, 0)
    held = [key in chosen for key, _ in IMAGES]
    changes = sum(before != after for before, after in pairwise(held)) / len(held)
    assert changes == pytest.approx(0.5, abs=0.05)


def test_the_split_never_changes() -> None:
    """Written down: a release that answered otherwise would move training images into the held-out set."""
    members = [(f"patient-{n}", "CT") for n in range(40)]
    chosen = held_out_groups(members, 0.2, 7)
    assert sorted(int(key.removeprefix("patient-")) for key in chosen) == [0, 2, 3, 16, 18, 20, 25, 34]


def test_rows_of_one_image_stay_together_and_count_once() -> None:
    rows = [ImageRow(n, f"{n % 10}.png", Path(), "CT: x", "CT", None) for n in range(30)]
    is_held_out = hold_out(rows, 0.2, 0)
    assert len({row.file for row in rows if is_held_out(row)}) == 2
    assert {is_held_out(row) for row in rows if row.file == "3.png"} in ({True}, {False})


def test_ratings_are_held_out_by_patient_and_poor_and_good_ones_alike() -> None:
    rows = [RatingRow(n, f"{n}.png", Path(), 1 + n % 3, "CT", 3, "CT: x", f"p{n // 2}") for n in range(60)]
    is_held_out = hold_out(rows, 0.25, 0)
    assert Counter(row.rating == 1 for row in rows if is_held_out(row)) == pytest.approx({True: 5, False: 10}, abs=1)
    assert all(is_held_out(one) == is_held_out(two) for one, two in zip(rows[::2], rows[1::2], strict=True))


def rated(number: int, family: str | None = None, patient: str | None = None) -> RatingRow:
    return RatingRow(number, f"{number}.png", Path(), 1 + number % 3, "CT", 3, "CT: x", patient, group=family)


def test_an_image_and_its_degraded_copies_are_on_one_side() -> None:
    rows = [rated(n, f"base-{n // 3}") for n in range(60)]
    is_held_out = hold_out(rows, 0.25, 0)
    sides = {n // 3: {is_held_out(row) for row in rows[n : n + 3]} for n in range(0, 60, 3)}
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {True} for side in sides.values()) == 5


def test_what_patients_and_families_link_stays_together() -> None:
    rows = [rated(0, "a", "p"), rated(1, "a", "q"), rated(2, "b", "q"), rated(3, "b"), rated(4, "c"), rated(5)]
    found = groups(rows)
    assert found == {"0.png": "p", "1.png": "p", "2.png": "p", "3.png": "p", "4.png": "c", "5.png": "5.png"}
    assert groups(rows[::-1]) == found


def test_a_patient_a_family_and_a_file_of_one_name_are_on_one_side() -> None:
    rows = [rated(0, "x"), rated(1, None, "x"), RatingRow(2, "x", Path(), 1, "CT", 3, "CT: x")]
    is_held_out = hold_out([*rows, *(rated(n) for n in range(3, 30))], 0.5, 0)
    assert len({is_held_out(row) for row in rows}) == 1
