"""`grouped`: problems of one kind on one line, with their number and the first of their rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medsyn.errors import Problem, grouped


def of_rows(rows: range, reason: str, severity: str = "error", key: str | None = "path") -> list[Problem]:
    return [Problem("a.csv", reason.format(row), row, key, severity) for row in rows]


def reasons(problems: list[Problem]) -> list[str]:
    return [problem.reason for problem in grouped(problems)]


def test_a_thousand_equal_warnings_are_one_line() -> None:
    found = grouped(of_rows(range(2, 1002), "'{0}.nii' was read, but it has {0} volumes", "warning"))
    told = "'2.nii' was read, but it has 2 volumes (1,000 rows like this: 2, 3, 4, 5, 6, ...)"
    assert found == [Problem("a.csv", told, 2, "path", "warning")]


def test_a_thousand_empty_cells_are_one_error_with_the_first_twenty_rows() -> None:
    shown = ", ".join(map(str, range(2, 22)))
    assert reasons(of_rows(range(2, 1002), "'' is not 1, 2 or 3")) == [
        f"'' is not 1, 2 or 3 (1,000 rows: {shown}, ...)"
    ]
    assert reasons(of_rows(range(2, 4), "'' is not 1, 2 or 3")) == ["'' is not 1, 2 or 3 (2 rows: 2, 3)"]


def test_a_few_errors_with_different_values_stay_single() -> None:
    few, many = (of_rows(range(2, 2 + number), "'{}.png' does not exist") for number in (5, 6))
    assert grouped(few) == few
    assert reasons(many) == ["'2.png' does not exist (6 rows like this: 2, 3, 4, 5, 6, 7)"]


@pytest.mark.parametrize(
    "change",
    [
        {"source": "b.csv"},
        {"key": "Text"},
        {"severity": "warning"},
        {"reason": "it's of CT, isn't it"},
        {"row": None},
    ],
)
def test_other_places_severities_and_reasons_are_other_kinds(change: dict[str, str | None]) -> None:
    first = Problem("a.csv", "it's of MRI, isn't it", 2, "path", "error")
    other = replace(first, **({"row": 3} | change))  # type: ignore[arg-type]
    assert grouped([first, other]) == [first, other]


def test_what_a_reader_has_counted_is_not_counted_again() -> None:
    counted = [Problem("a.csv", f"is empty ({n} rows: {n}, 9)", n, "path", "warning") for n in (2, 3)]
    assert grouped(counted) == counted


def test_kinds_stay_in_the_order_of_their_first_problem() -> None:
    one, two = of_rows(range(2, 4), "is empty", "warning"), of_rows(range(3, 5), "is long", "warning", "Text")
    assert [problem.key for problem in grouped([one[0], two[0], one[1], two[1]])] == ["path", "Text"]
