"""What the report says of raters whose habits are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medsyn.cli import rate
from medsyn.rating.report import Agreement, Between, RaterFigures, assess
from medsyn.rating.sessions import read_sessions, write_sessions

IMAGES, DECOYS, REPEATS, PAIRS = 60, 12, 20, 12
RESAMPLES = 100
Habit = Callable[[int, int, float], int]  # (image, order, true quality) -> rating


def session(rater: str, habit: Habit, seconds: float = 6.0, prefer: str = "a") -> list[dict[str, Any]]:
    truth = np.random.default_rng(0).uniform(1, 3, IMAGES + DECOYS)
    places = [*range(IMAGES + DECOYS), *range(REPEATS)]
    order = [int(place) for place in np.random.default_rng(1).permutation(len(places))]
    cases = [
        {
            "set": "s",
            "rater": rater,
            "kind": "case",
            "item": f"case{number}",
            "order": order[number],
            "rating": habit(image, order[number], truth[image]),
            "not_sure": False,
            "seconds": seconds,
            "repeat_of": f"case{image}" if number >= IMAGES + DECOYS else None,
            "decoy": image >= IMAGES,
            "source": "real" if image >= IMAGES else "generated",
            "file": f"{image}.png",
            "modality": "CT" if image % 2 else "MRI",
        }
        for number, image in enumerate(places)
    ]
    common = {"set": "s", "rater": rater, "kind": "pair", "not_sure": False, "seconds": seconds, "modality": "CT"}
    return cases + [common | {"item": f"pair{n}", "order": 100 + n, "preferred": prefer} for n in range(PAIRS)]


def honest(image: int, order: int, truth: float) -> int:
    return round(truth)


def guessing(seed: int) -> Habit:
    generator = np.random.default_rng(seed)
    return lambda image, order, truth: int(generator.integers(1, 4))


def report(tmp_path: Path, *sessions: list[dict[str, Any]]) -> Agreement:
    write_sessions(tmp_path / "sessions.parquet", [row for rows in sessions for row in rows])
    return assess(read_sessions(tmp_path), RESAMPLES)


def test_raters_who_agree(tmp_path: Path) -> None:
    found = report(tmp_path, session("A", honest), session("B", honest))
    assert [one.rater for one in found.raters] == ["A", "B"]
    first = found.raters[0]
    assert (first.cases, first.pairs, sum(first.ratings.values())) == (IMAGES + DECOYS + REPEATS, PAIRS, first.cases)
    assert first.repeat_kappa.value == first.repeat_icc.value == 1
    assert first.repeat_kappa.n == REPEATS
    assert found.overall.alpha.value == found.overall.ac2.value == found.overall.kappas["A, B"] == 1
    assert found.overall.images == IMAGES + DECOYS
    assert set(found.by_modality) == {"CT", "MRI"}
    assert found.overall.pair_agreement.value == 1
    assert found.warnings == []


def test_a_rater_who_guesses_is_told_of(tmp_path: Path) -> None:
    found = report(tmp_path, session("A", guessing(1)), session("B", guessing(2), prefer="b"))
    assert found.overall.pair_agreement.value == 0
    text = "\n".join(found.warnings)
    assert "A agrees with their own earlier ratings hardly better than by chance" in text
    assert "raters agree hardly better than by chance on all images" in text


@pytest.mark.parametrize(
    ("habit", "seconds", "says"),
    [
        (lambda image, order, truth: 3, 6, "gave every image a 3"),
        (honest, 0.5, "answered 100% of the cases in under 1 s"),
        (lambda image, order, truth: 1 + order * 3 // 92, 6, "rated higher towards the end of the session"),
    ],
)
def test_habits_are_told_of(tmp_path: Path, habit: Habit, seconds: float, says: str) -> None:
    found = report(tmp_path, session("A", habit, seconds))
    assert any(says in warning for warning in found.warnings)
    assert "one rater only: whether another expert would agree is not known" in found.warnings


def test_decoys_that_stand_out(tmp_path: Path) -> None:
    def knows(image: int, order: int, truth: float) -> int:
        return 3 if image >= IMAGES else min(2, round(truth))

    figures: RaterFigures = report(tmp_path, session("A", knows)).raters[0]
    assert figures.decoys == figures.decoy_d.n == DECOYS
    assert figures.decoy_d.low > 1
    blind = report(tmp_path, session("A", honest)).raters[0].decoy_d
    assert blind.low < 0 < blind.high


def test_a_first_answer_is_the_one_shown_first(tmp_path: Path) -> None:
    """Whoever rates one lower the second time has a bias that the ICC of absolute agreement sees."""

    def stricter(image: int, order: int, truth: float) -> int:
        return max(1, round(truth) - (order > 46))

    assert report(tmp_path, session("A", stricter)).raters[0].repeat_icc.value < 1


def test_the_report_is_json_and_a_function_of_the_table(tmp_path: Path) -> None:
    first, again = (report(tmp_path, session("A", honest)).as_dict() for _ in range(2))
    assert json.loads(json.dumps(first, allow_nan=False)) == first == again
    assert first["overall"]["alpha"]["value"] is None


def test_an_empty_table_says_nothing(tmp_path: Path) -> None:
    write_sessions(tmp_path / "sessions.parquet", [])
    found = assess(read_sessions(tmp_path), RESAMPLES)
    assert found.raters == []
    assert isinstance(found.overall, Between)


def test_figures_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [*session("A", honest), *session("B", guessing(3))]
    write_sessions(tmp_path / "sessions.parquet", rows)
    table = read_sessions(tmp_path)
    shuffled = table.sample(frac=1, random_state=0)
    assert isinstance(shuffled, pd.DataFrame)
    first, second = assess(table, RESAMPLES), assess(shuffled, RESAMPLES)
    assert first.overall.alpha.value == pytest.approx(second.overall.alpha.value)
    assert first.raters[0].repeat_kappa.value == second.raters[0].repeat_kappa.value


def test_volumes_of_one_file_are_not_one_image(tmp_path: Path) -> None:
    rows = [one | {"file": "4d.nii", "volume": 1 + one["order"]} for one in session("A", honest) + session("B", honest)]
    assert report(tmp_path, rows).overall.images == IMAGES + DECOYS


def test_a_rater_of_pairs_only_is_a_rater(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [one for one in session("A", honest) if one["kind"] == "pair"]
    found = report(tmp_path, pairs)
    assert [(one.rater, one.cases, one.pairs) for one in found.raters] == [("A", 0, PAIRS)]
    assert found.warnings == ["there are no ratings: of pairs only the agreement between raters is known"]
    assert rate.main("medsyn rate", ["report", str(tmp_path)]) == 0
    assert "nan" not in capsys.readouterr().out


def test_what_is_not_known_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path, session("A", lambda *_: 2), session("B", lambda *_: 2))
    assert rate.main("medsyn rate", ["report", str(tmp_path)]) == 0
    assert "A, B: kappa -" in capsys.readouterr().out


def test_decoys_are_told_from_images_that_do_not_say_what_they_are(tmp_path: Path) -> None:
    unmarked = [one | {"source": "real"} for one in session("A", honest)]
    assert report(tmp_path, unmarked).raters[0].decoy_d == report(tmp_path, session("A", honest)).raters[0].decoy_d
    assert report(tmp_path, unmarked).raters[0].decoys == DECOYS
