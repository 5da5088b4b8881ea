from __future__ import annotations

import pytest

from medsyn.errors import Problem
from medsyn.text import GIB, and_more, closest, counted, did_you_mean, duration, gib, span, visible


def test_one_thing_has_no_plural() -> None:
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_characters_that_hide_or_move_others_are_escaped() -> None:
    assert visible("a\u202eb\x1b[2Jc\nd") == "a\\u202eb\\x1b[2Jc\\nd"
    assert visible("Röntgen 肺 \N{BLACK CIRCLE}") == "Röntgen 肺 \N{BLACK CIRCLE}"
    assert str(Problem("\u202ea.csv", "says \x07", 2, "fin\x1bding")) == r"\u202ea.csv, line 2, fin\x1bding: says \x07"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (200, "3:20"), (7400, "2:03:20")]
)
def test_a_duration_reads_like_a_clock(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("amount", "shown"), [(0, "0.00"), (0.034, "0.03"), (1, "1.0"), (15.34, "15.3"), (120, "120.0")]
)
def test_a_size_has_the_digits_that_matter(amount: float, shown: str) -> None:
    assert gib(amount * GIB) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0, "0 s"), (4.4, "4.4 s"), (99, "99 s"), (100, "1.7 min"), (5400, "90 min"), (6000, "1.7 h")),
        *((86400, "24 h"), (200_000, "2.3 days"), (10_000_000, "116 days")),
    ],
)
def test_a_span_is_given_in_the_unit_it_deserves(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_a_list_is_cut_short_only_where_it_is_longer() -> None:
    assert [and_more(items, 2) for items in ([], [1], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "1",
        "a, b",
        "a, b and 1 more",
    ]


def test_what_was_meant_is_found_whatever_the_case() -> None:
    assert closest("PROMT", ["Prompt", "modality"]) == "Prompt"
    assert did_you_mean("promt", ["prompt"], show=repr) == "; did you mean 'prompt'?"


def test_nothing_is_suggested_that_is_not_alike() -> None:
    assert closest("x", ["prompt"]) is None
    assert did_you_mean("prompz", ["prompt"], cutoff=0.99) == ""
    assert did_you_mean("prompt", []) == ""
