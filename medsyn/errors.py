"""User errors, reported once and in full, and the exit codes of every task and command.

A user's mistake is never a traceback: code that meets one raises `InputError` (one file, one reason) or collects
`Problem`s and raises `InputProblems` with all of them at once. `medsyn.cli.app` prints them and
leaves with `EXIT_BAD_INPUT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medsyn.text import visible

EXIT_DONE = 0
EXIT_FAILED = 1  # a bug, or out of memory: see the log
EXIT_BAD_INPUT = 65  # EX_DATAERR: a rerun without a change would fail again
EXIT_NO_PROGRESS = 70  # EX_SOFTWARE: failed twice at the same place
EXIT_BAD_SETUP = 72  # EX_OSFILE: a line of the site profile's setup failed, and the task was not started
EXIT_SAVED = 75  # EX_TEMPFAIL: progress is on disk, run me again
EXIT_BAD_NODE = 78  # EX_CONFIG: this machine is unfit (no GPU visible, disk full)
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells count it

CONFIGURATION = "configuration"  # how messages name it


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input: where it is, what is wrong, what would be right."""

    source: str  # the file, or the configuration, as the user named it
    reason: str  # what is wrong, and what would be right
    row: int | None = None  # 1-based line number in a table; the header is line 1
    key: str | None = None  # column of a table, or dotted key of the configuration
    severity: str = "error"  # "error" stops; "warning" is reported and counted

    def __str__(self) -> str:
        place = self.source
        if self.row is not None:
            place += f", line {self.row}"
        if self.key is not None:
            place += f", {self.key}"
        return visible(f"{place}: {self.reason}")  # names of files and columns are the user's

    def as_dict(self) -> dict[str, str | int | None]:
        """The problem as a JSON-ready mapping."""
        return asdict(self)


# what problems of one kind differ in: quoted values and numbers
_VALUE = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\d+""")
_COUNTED = re.compile(r"\(\d+ rows?\b[^()]*\)$")  # by the reader of the table
_SINGLY = 5  # errors of one kind that are told one by one, each with its value
_ROWS_NAMED = {"error": 20, "warning": 5}


def grouped(problems: Iterable[Problem]) -> list[Problem]:
    """The problems as a reader wants them: those of one kind together, with their number and the first of their rows.

    Of one kind are those of one column that differ only in their rows, or in quoted values and numbers. A few errors
    with different values stay single.
    """
    kinds: dict[Problem, list[Problem]] = {}
    for problem in problems:
        is_one_row = problem.row is not None and not _COUNTED.search(problem.reason)
        kind = replace(problem, row=0, reason=_VALUE.sub("?", problem.reason)) if is_one_row else problem
        kinds.setdefault(kind, []).append(problem)
    return [problem for members in kinds.values() for problem in _together(members)]


def _together(members: list[Problem]) -> list[Problem]:
    """The problems of one kind, as one if they are alike or many."""
    first, rows = members[0], list(dict.fromkeys(problem.row for problem in members))
    are_equal = all(problem.reason == first.reason for problem in members)
    if len(rows) == 1 or (first.severity == "error" and not are_equal and len(members) <= _SINGLY):
        return list(dict.fromkeys(members))
    shown = rows[: _ROWS_NAMED.get(first.severity, _SINGLY)]
    named = ", ".join(map(str, shown)) + (", ..." if len(rows) > len(shown) else "")
    like = "" if are_equal else " like this"
    return [replace(first, reason=f"{first.reason} ({len(rows):,} rows{like}: {named})")]


class InputError(ValueError):
    """One bad input: the file (or key) and the reason. The only exception a reader raises for a user's mistake."""

    def __init__(self, source: str | Path, reason: str, row: int | None = None, key: str | None = None) -> None:
        self.problem = Problem(str(source), reason, row, key)
        super().__init__(str(self.problem))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, int | None, str | None]]:
        return InputError, (self.problem.source, self.problem.reason, self.problem.row, self.problem.key)

    @property
    def problems(self) -> list[Problem]:
        """The one problem, as a list, so that both error types are handled alike."""
        return [self.problem]


class InputProblems(ValueError):
    """Everything wrong with an input, found in one pass."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputProblems], tuple[list[Problem]]]:
        return InputProblems, (self.problems,)


class SlurmError(Exception):
    """A Slurm command failed; the message is its last line."""
