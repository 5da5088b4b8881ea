"""Answers that come back: what is refused, what is merged."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from medsyn.errors import InputProblems, Problem
from medsyn.rating.collect import collect
from medsyn.rating.formats import SetKey, read_key, seal
from tests.helpers import rating as sets

NOW = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return sets.write_set(tmp_path)


@pytest.fixture
def key(key_file: Path) -> SetKey:
    return read_key(key_file)


def by_number(image: str) -> int:
    return 1 + int(image[5:9]) % 3


def problems(files: list[Path], keys: list[Path]) -> list[Problem]:
    with pytest.raises(InputProblems) as caught:
        collect(files, keys, NOW)
    return caught.value.problems


def test_rows_say_what_the_opaque_names_stand_for(tmp_path: Path, key_file: Path, key: SetKey) -> None:
    file = sets.write_answers(tmp_path / "a.json", sets.answers(key, "R1", by_number))
    rows, warnings = collect([file], [key_file], NOW)
    assert warnings == []
    assert len(rows) == len(key.cases) + len(key.pairs)
    assert rows[3]["file"] == str(tmp_path / "images/03.png")
    assert (rows[3]["rating"], rows[3]["modality"], rows[3]["seconds"]) == (1, "CT", 3.7)
    assert (rows[3]["source"], rows[3]["decoy"], rows[sets.CASES]["decoy"]) == ("generated", False, True)
    assert rows[sets.CASES + sets.DECOYS]["repeat_of"] == sets.name("case", 0)


@pytest.mark.parametrize(
    ("choice", "meant"), [("left", "b"), ("right", "a"), ("same", "same"), ("both-bad", "neither")]
)
def test_a_preference_is_of_the_image_not_of_the_side(
    tmp_path: Path, key_file: Path, key: SetKey, choice: str, meant: str
) -> None:
    tree = sets.answers(key, "R1", by_number, lambda number: choice, only=lambda item: item.startswith("pair"))
    for answer in tree["answers"]:
        answer["shown"] = answer["shown"][::-1]
    rows, _ = collect([sets.write_answers(tmp_path / "a.json", seal(tree))], [key_file], NOW)
    assert {row["preferred"] for row in rows} == {meant}


def forge(tree: dict[str, Any], how: str) -> None:
    first, last = tree["answers"][0], tree["answers"][-1]
    if how == "unknown":
        first["item"] = "aaaaaaaaaaaa"
    elif how == "twice":
        last["item"], last["shown"], last["choice"], last["rating"] = first["item"], first["shown"], None, 2
    elif how == "other image":
        first["shown"] = [sets.name("image", 9)]
    elif how == "case as pair":
        first.update(rating=None, choice="left", shown=[sets.name("image", 0)] * 2)
    elif how == "pair as case":
        last.update(rating=3, choice=None, shown=last["shown"][:1])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("unknown", "has no case or pair aaaaaaaaaaaa"),
        ("twice", "is answered twice in one file"),
        ("other image", "shows image0000xxx, not image0009xxx"),
        ("case as pair", "shows image0000xxx"),
        ("pair as case", "shows image0004xxx and image0005xxx"),
    ],
)
def test_forged_answers_are_refused(tmp_path: Path, key_file: Path, key: SetKey, how: str, says: str) -> None:
    tree = sets.answers(key, "R1", by_number)
    forge(tree, how)
    (problem,) = problems([sets.write_answers(tmp_path / "a.json", seal(tree))], [key_file])
    assert says in problem.reason
    assert problem.source == str(tmp_path / "a.json")


def test_everything_wrong_with_all_files_is_told_at_once(tmp_path: Path, key_file: Path, key: SetKey) -> None:
    edited = sets.answers(key, "R1", by_number)
    edited["answers"][0]["rating"] = 3
    other = sets.answers(key.model_copy(update={"set": "6" * 64, "id": "666666666666"}), "R2", by_number)
    files = [
        sets.write_answers(tmp_path / "edited.json", edited),
        sets.write_answers(tmp_path / "other.json", other),
        tmp_path / "missing.json",
        sets.write_answers(tmp_path / "level1.json", sets.answers(key, "R3", by_number, level=1)),
        sets.write_answers(tmp_path / "level2.json", sets.answers(key, "R3", by_number, level=2)),
    ]
    reasons = " | ".join(map(str, problems(files, [key_file])))
    for words in (
        "was changed after the page saved it",
        "is of the set 666666666666, and the keys given are of 555555555555",
        "missing.json: cannot be read",
        "R3 has the expert level 2 here and 1 in",
    ):
        assert words in reasons


def test_a_session_saved_twice_counts_once_and_its_latest_answers_win(
    tmp_path: Path, key_file: Path, key: SetKey
) -> None:
    half = sets.answers(key, "R1", lambda image: 1, only=lambda item: item < "case0008")
    whole = sets.answers(key, "R1", by_number)
    for number, answer in enumerate(whole["answers"]):
        answer["serial"] = 100 + number
    whole["exported_at"] = "2026-01-01T12:00:00Z"
    files = [
        sets.write_answers(tmp_path / "whole.json", seal(whole)),
        sets.write_answers(tmp_path / "half.json", half),
    ]
    rows, _ = collect(files, [key_file], NOW)
    assert rows == collect(files[:1], [key_file], NOW)[0] == collect(files[::-1], [key_file], NOW)[0]
    assert len(collect(files[1:], [key_file], NOW)[0]) == 8


def test_two_people_under_one_name_are_refused(tmp_path: Path, key_file: Path, key: SetKey) -> None:
    first = sets.answers(key, "R1", by_number)
    second = sets.answers(key, "R1", lambda image: 2, started="2026-01-02T10:00:00Z")
    files = [sets.write_answers(tmp_path / f"{n}.json", tree) for n, tree in enumerate((first, second))]
    (problem,) = problems(files, [key_file])
    assert problem.source == str(files[1])
    assert "R1 began another session with the same set, and " in problem.reason


def test_a_session_that_went_on_elsewhere_is_one(tmp_path: Path, key_file: Path, key: SetKey) -> None:
    first = sets.answers(key, "R1", by_number, only=lambda item: item < "case0008")
    second = sets.answers(key, "R1", by_number, only=lambda item: item >= "case0006", started="2026-01-02T10:00:00Z")
    files = [sets.write_answers(tmp_path / f"{n}.json", tree) for n, tree in enumerate((first, second))]
    assert len(collect(files, [key_file], NOW)[0]) == len(key.cases) + len(key.pairs)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("exported_at", "2031-01-01T00:00:00Z", "which is in the future"),
        ("started_at", "2026-01-01T11:30:00Z", "after it was saved"),
    ],
)
def test_a_wrong_clock_is_a_warning(
    tmp_path: Path, key_file: Path, key: SetKey, field: str, value: str, says: str
) -> None:
    tree = seal(sets.answers(key, "R1", by_number) | {field: value})
    rows, (warning,) = collect([sets.write_answers(tmp_path / "a.json", tree)], [key_file], NOW)
    assert (warning.severity, len(rows)) == ("warning", len(key.cases) + len(key.pairs))
    assert says in warning.reason
