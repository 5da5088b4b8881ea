"""What is wrong with one table, collected while it is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from medsyn.data.tables.token_count import TokenCount
from medsyn.errors import Problem
from medsyn.text import counted

_ROWS_NAMED = 5  # by a warning


def show(value: str) -> str:
    """A value of a table as a message may print it: short, and without control characters."""
    return repr(value if len(value) <= 100 else value[:97] + "...")


@dataclass
class _Rows:
    """How many rows a warning is about, and the first few."""

    count: int = 0
    first: list[int] = field(default_factory=list)
    most: int = 0  # what the reason's {most} stands for


@dataclass
class Faults:
    """What is wrong with one table: errors one by one, warnings counted by kind."""

    source: str
    most: int | None = None  # errors that are kept; more are only counted
    tokens: TokenCount | None = None  # of the model that will read the texts; None: it is estimated
    errors: list[Problem] = field(default_factory=list)
    further_errors: int = 0
    warned: dict[tuple[str | None, str], _Rows] = field(default_factory=dict)
    file_refused: bool = False

    def error(self, row: int | None, key: str | None, reason: str) -> None:
        """An error that costs one row (or, with row None, concerns the whole file)."""
        if self.most is not None and len(self.errors) >= self.most:
            self.further_errors += 1
        else:
            self.errors.append(Problem(self.source, reason, row, key))

    @property
    def count(self) -> int:
        """How many errors there are."""
        return len(self.errors) + self.further_errors

    def refuse_file(self, row: int | None, key: str | None, reason: str) -> None:
        """An error that makes the whole file unusable; the rest of it is still checked."""
        self.error(row, key, reason)
        self.file_refused = True

    def warn(self, row: int, key: str | None, reason: str, amount: int = 0) -> None:
        """Something worth knowing that costs no row; counted by kind. `{most}` becomes the largest amount."""
        rows = self.warned.setdefault((key, reason), _Rows())
        rows.count += 1
        rows.most = max(rows.most, amount)
        if rows.count <= _ROWS_NAMED:
            rows.first.append(row)

    def all_errors(self) -> list[Problem]:
        """The errors kept, and how many more there are."""
        if not self.further_errors:
            return self.errors
        more = f"and {counted(self.further_errors, 'more error')}, which are not shown"
        return [*self.errors, Problem(self.source, more)]

    def warnings(self, with_rows: bool = True) -> list[Problem]:
        """One problem of severity warning for each kind, with how many rows it is about and the first of them."""
        problems = []
        for (key, reason), rows in self.warned.items():
            reason = reason.replace("{most}", str(rows.most))
            if not with_rows:
                problems.append(Problem(self.source, reason, rows.first[0], key, "warning"))
                continue
            shown = ", ".join(map(str, rows.first)) + (", ..." if rows.count > len(rows.first) else "")
            count = "1 row" if rows.count == 1 else f"{rows.count} rows: {shown}"
            problems.append(Problem(self.source, f"{reason} ({count})", rows.first[0], key, "warning"))
        return problems
