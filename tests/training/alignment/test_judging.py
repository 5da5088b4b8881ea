"""What the judge's looks lead to: which step is best, when training stops, what is published, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medsyn.config import AlignSection, Config
from medsyn.training.alignment.judge import Look
from medsyn.training.alignment.judging import Judging, Seat

COUNT = 24
EACH = np.random.default_rng(0).normal(size=COUNT)


def covers(share: float) -> np.ndarray:
    """Which of 20 real images are covered."""
    return np.arange(20) < 20 * share


def look(quality: float, diversity: float = 0.6, prompt: float | None = None) -> Look:
    """Images of such a mean quality, each a little off it, the same way in every look but for one."""
    noise = 0.05 * np.random.default_rng(int(1000 * abs(quality))).normal(size=COUNT)
    texts = None if prompt is None else np.clip(prompt + 0.1 * EACH + noise, 0, 1)
    return Look(None, quality + 0.2 * EACH + noise, texts, np.full(COUNT, 1 - diversity), covers(0.5))


def judging(
    tmp_path: Path, *looks: Look, rewards: list[float] | None = None, real: float | None = 0.6, **section: Any
) -> Judging:
    """A round with these looks: before its first step, after 10, 20, ..."""
    align = AlignSection(enabled=True, judge_images=COUNT, max_train_steps=100, judge_every=10, **section)
    notes = {"real_diversity": real}
    decides = {"distance": False, "quality": True, "prompt": looks[0].prompt is not None}
    judge = SimpleNamespace(notes=notes, decides=decides)
    its: Any = [None] * COUNT
    seat = Seat(Config(align=align), "CT", its, *[None] * 2, 0.5, judge, None)  # type: ignore[arg-type, misc]
    made = Judging(seat, SimpleNamespace(directory=tmp_path), 1, 0)  # type: ignore[arg-type]
    made._looks = {10 * number: one for number, one in enumerate(looks)}
    given = rewards or [0.5 + 0.1 * number for number in range(len(looks))]
    made._lines = {10 * number: {"reward": reward, "accepted": 1.0} for number, reward in enumerate(given)}
    return made


def test_what_is_better_is_published_with_what_is_known_of_it(tmp_path: Path) -> None:
    told = judging(tmp_path, look(0.3), look(0.5), look(0.7)).verdict(20)
    assert (told["kept"], told["step"], told["reason"]) == (True, 20, "better by the judge: quality")
    assert told["before"]["quality"][0] == pytest.approx(0.3, abs=0.1)
    assert told["after"]["quality"][0] == pytest.approx(0.7, abs=0.1)
    value, low, high = told["gains"]["quality"]
    assert low < value < high
    assert low > 0
    assert told["judged_images"] == COUNT // 2, "the other half chose the step"


def test_a_step_is_the_best_by_the_judge_and_not_by_the_scorers(tmp_path: Path) -> None:
    found = judging(tmp_path, look(0.3), look(0.7), look(0.5), rewards=[0.1, 0.2, 0.9])
    assert found.verdict(20)["step"] == 10


def test_reward_up_and_judge_down_is_told_by_its_name_and_stops(tmp_path: Path) -> None:
    found = judging(tmp_path, look(0.5), look(0.2), rewards=[0.3, 0.9])
    assert found.turned == "reward hacking: quality worse than before"
    told = found.verdict(10)
    assert told["kept"] is False
    assert told["reason"] == "reward hacking: the judge finds quality worse"
    assert told["stopped"] == found.turned


def test_without_the_reward_it_is_only_worse(tmp_path: Path) -> None:
    found = judging(tmp_path, look(0.5), look(0.2), rewards=[0.9, 0.3])
    assert found.turned == "the judge turned: quality worse than before"
    assert found.verdict(10)["reason"] == "worse: the judge finds quality worse"


def test_falling_behind_the_best_so_far_stops_too_and_the_best_is_published(tmp_path: Path) -> None:
    found = judging(tmp_path, look(0.3), look(0.9), look(0.6))
    assert found.turned == "reward hacking: quality worse than step 10"
    assert (found.verdict(20)["kept"], found.verdict(20)["step"]) == (True, 10)


def test_going_on_is_no_reason_to_stop(tmp_path: Path) -> None:
    assert judging(tmp_path, look(0.3)).turned is None
    assert judging(tmp_path, look(0.3), look(0.31), look(0.5)).turned is None


def test_one_aspect_that_is_worse_outweighs_another_that_is_better(tmp_path: Path) -> None:
    told = judging(tmp_path, look(0.3, prompt=0.8), look(0.7, prompt=0.3)).verdict(10)
    assert told["kept"] is False
    assert "finds prompt worse" in told["reason"]


def test_no_difference_is_not_published(tmp_path: Path) -> None:
    told = judging(tmp_path, look(0.3), look(0.301)).verdict(10)
    assert (told["kept"], told["reason"]) == (False, "the judge finds no difference in quality")


@pytest.mark.parametrize(
    ("before", "after", "recall", "real", "kept"),
    [
        (0.6, 0.58, 0.1, 0.6, True),
        (0.6, 0.5, 0.1, 0.6, False),
        (0.6, 0.5, 0.5, 0.6, True),  # noise is gone, and what there is of real images is covered as before
        (0.6, 0.5, None, 0.6, False),
        (0.9, 0.6, 0.1, 0.6, True),  # wrong images are diverse: what real ones have is enough
        (0.6, 0.58, 0.1, None, True),
        (0.6, 0.5, 0.1, None, False),
    ],
)
def test_diversity_is_a_condition(
    tmp_path: Path, before: float, after: float, recall: float | None, real: float | None, kept: bool
) -> None:
    last = replace(look(0.7, after), covered=None if recall is None else covers(recall))
    told = judging(tmp_path, look(0.3, before), last, real=real).verdict(10)
    fell = "" if recall is None else f", and recall fell from 0.50 to {recall:.2f}"
    limit = 0.95 * min(before, real or 1)
    reason = f"diversity {after:.3f} (at most {after:.3f}) is below {limit:.3f}{fell} (align.min_diversity)"
    assert told["kept"] is kept
    assert kept or told["reason"] == reason


def test_a_step_that_is_diverse_enough_is_chosen_before_a_better_one(tmp_path: Path) -> None:
    collapsed = replace(look(0.9, 0.2), covered=covers(0.1))
    assert judging(tmp_path, look(0.3), look(0.5), collapsed).verdict(20)["step"] == 10
