"""What comes back: read strictly, and what is wrong with it is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from medsyn.errors import InputError, InputProblems
from medsyn.rating.formats import ANSWERS_FORMAT, Answer, Answers, RatingSet, SetKey, read_answers, read_key, seal
from tests.docs.pages import in_backticks, table
from tests.helpers.paths import ROOT

ANSWER: dict[str, Any] = {
    "item": "aaaaaaaaaaaa",
    "defects": ["blur"],
    "confidence": 2,
    "note": "né \U0001f9e0 <b>",
    "milliseconds": 4200,
    "order": 0,
    "shown": ["bbbbbbbbbbbb"],
    "rating": 2,
    "choice": None,
    "not_sure": False,
    "answered_at": "2026-01-02T03:04:05.678Z",
    "serial": 1,
    "changes": 0,
    "window": {"low": 0, "high": 255},
    "zoom": 250,
}


def answers(**changes: Any) -> dict[str, Any]:
    tree = {
        "format": ANSWERS_FORMAT,
        "version": "1",
        "set": {"id": "0" * 12, "hash": "0" * 64},
        "rater": {"id": "r1", "expert_level": 2},
        "started_at": "2026-01-02T03:00:00Z",
        "exported_at": "2026-01-02T04:00:00Z",
        "display": {
            "dark_patch": True,
            "bright_patch": None,
            "light": "dim",
            "width": 1280,
            "height": 800,
            "ratio": 100,
        },
        "answers": [ANSWER],
        "drafts": [],
    }
    return seal({**tree, **changes})


def written(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "answers.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def test_answers_are_read(tmp_path: Path) -> None:
    read = read_answers(written(tmp_path, answers()))
    assert (read.rater.id, read.answers[0].rating, read.answers[0].note) == ("r1", 2, ANSWER["note"])


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "names no format"),
        ("[" * 100_000, "is not JSON"),
        ({"format": "medsyn-rating-key/1"}, "its format is 'medsyn-rating-key/1', not 'medsyn-rating-answers/1'"),
        ({**answers(), "version": "2"}, "was changed after the page saved it"),
        ({**answers(), "version": math.inf}, "was changed after the page saved it"),
        ({**answers(), "integrity": None}, "was changed after the page saved it"),
        ({**answers(), "version": "\ud800"}, "was changed after the page saved it"),
    ],
)
def test_what_is_no_file_of_answers_is_refused(tmp_path: Path, tree: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason.replace("(", r"\(")):
        read_answers(written(tmp_path, tree))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rating": 4}, "answers.0.rating"),
        ({"rating": 2.0}, "answers.0.rating"),
        ({"rating": True}, "answers.0.rating"),
        ({"rating": None}, "answers.0"),
        ({"not_sure": True}, "answers.0"),
        ({"choice": "left", "rating": None}, "answers.0"),
        ({"item": "../../etc"}, "answers.0.item"),
        ({"note": "x" * 2001}, "answers.0.note"),
        ({"milliseconds": -1}, "answers.0.milliseconds"),
        ({"answered_at": "yesterday"}, "answers.0.answered_at"),
        ({"more": 1}, "answers.0.more"),
    ],
)
def test_fields_out_of_range_are_named(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputProblems) as raised:
        read_answers(written(tmp_path, answers(answers=[ANSWER | change])))
    assert [problem.key for problem in raised.value.problems] == [key]


def test_a_name_of_a_rater_cannot_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(InputProblems, match=r"rater\.id"):
        read_answers(written(tmp_path, answers(rater={"id": "../r1", "expert_level": 2})))


@pytest.mark.parametrize(
    ("header", "model"),
    [("field", Answers), ("field of an answer", Answer), ("field of the key", SetKey), ("field of the set", RatingSet)],
)
def test_the_document_has_every_field(header: str, model: type[BaseModel]) -> None:
    rows = table(ROOT / "docs" / "rating.md", header, "meaning")
    assert [in_backticks(row[0])[0] for row in rows] == list(model.model_fields)


def test_a_key_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_key(tmp_path / "set.key.json")
