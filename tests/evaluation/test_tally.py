from __future__ import annotations

from typing import Any

import pytest

from medsyn.evaluation import tally
from medsyn.evaluation.tally import Tally


def image(name: str, accepted: bool, selector: float | None = None, **extra: str) -> dict[str, Any]:
    return {"id": name, "accepted": accepted, "selector": selector, "policy": selector, "extra": extra}


def candidates(passed: int, rejected: int) -> list[dict[str, Any]]:
    return [
        *[{"passed": True, "selector": 0.9}] * passed,
        *[{"passed": False, "selector": 0.1}] * (rejected - 1),
        {"passed": False, "selector": None},
    ]


def test_a_summary_counts_what_was_asked_for_not_what_was_made() -> None:
    made = Tally()
    made.add_images("CT", [image("a", True, 0.8), image("b", False, 0.1), image("b", False, 0.1)])
    made.add_candidates(candidates(1, 7))
    made.add_timing({"seconds": 3.0, "unet_evaluations": 16})
    made.add_timing({"seconds": 1.0})
    summary = made.summary()
    assert summary["requested"] == 3 and summary["accepted"] == 1
    assert summary["attempts_per_accepted"] == 8 and summary["attempt_pass_rate"] == 1 / 8
    assert summary["exhausted"] == 1 and summary["exhausted_prompts"] == ["b"]
    assert summary["selector_mean"] == 0.8, "refused images do not count"
    assert summary["seconds_per_accepted"] == 4 and summary["unet_evaluations"] == 16
    assert made.passed_scores.sum() == 1 and made.rejected_scores.sum() == 6, "what has no score is in no bin"


def test_marks_and_thresholds_are_counted() -> None:
    made = Tally()
    marks = [True, False, False, True, None]
    made.add_images("CT", [{**image("a", True, 0.8), "quality_threshold": 0.4, "unfamiliar": True}])
    made.add_candidates([{"passed": True, "selector": 0.9, "unfamiliar": mark} for mark in marks])
    other = Tally()
    other.add_images("MRI", [{**image("b", True, 0.8), "quality_threshold": 0.7, "selector_spread": 0.1}])
    summary = tally.total([made, other]).summary()
    assert (summary["unfamiliar_rate"], summary["unfamiliar_accepted"]) == (0.5, 1)
    assert (summary["quality_thresholds"], summary["selector_spread_mean"]) == ({"CT": 0.4, "MRI": 0.7}, 0.1)


def test_a_summary_of_nothing_has_no_numbers_and_no_error() -> None:
    summary = Tally().summary()
    assert summary["requested"] == 0 and summary["acceptance_rate"] is None and summary["seconds"] is None


def test_merged_tallies_are_those_of_all_records_together() -> None:
    first, second, both = Tally(), Tally(), Tally()
    for one in (first, both):
        one.add_images("CT", [image("a", True, 0.5), image("b", False)])
        one.add_candidates(candidates(2, 3))
        one.add_timing({"seconds": 2.0, "unet_evaluations": 5})
    for one in (second, both):
        one.add_images("MRI", [image("c", True, 0.7)])
        one.add_candidates(candidates(1, 1))
    merged = tally.total([first, second])
    assert merged.summary() == both.summary()
    assert merged.passed_scores.tolist() == both.passed_scores.tolist()
    assert tally.total([first]).summary() == first.summary(), "merging changes none of its parts"


def test_of_many_exhausted_prompts_all_are_counted_and_the_first_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "EXHAUSTED_NAMED", 2)
    made = Tally()
    for number in range(5):  # two replicates each, and blocks that cut prompts in two
        made.add_images("CT", [image(f"p{number}", False)])
        made.add_images("CT", [image(f"p{number}", False)])
    assert made.exhausted == 5 and made.exhausted_prompts == ["p0", "p1"]


def test_a_column_with_too_many_values_costs_no_memory() -> None:
    made = Tally()
    made.add_images(
        "CT", (image(f"p{number}", True, serial=str(number), finding="ab"[number % 2]) for number in range(999))
    )
    assert made.cells.dropped == {("CT", "serial")}
    assert made.cells.cells == {("CT", "", ""): 999, ("CT", "finding", "a"): 500, ("CT", "finding", "b"): 499}
