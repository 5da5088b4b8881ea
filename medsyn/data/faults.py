"""What is wrong with one table, collected while it is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from medsyn.errors import Problem


def show(value: str) -> str:
    """A value of a table as a message may print it: short, and without control characters."""
    return repr(value if len(value) <= 100 else value[:97] + "...")


@dataclass
class Faults:
    """What is wrong with one table: errors one by one, warnings counted by kind."""

    source: str
    errors: list[Problem] = field(default_factory=list)
    warned: dict[tuple[str | None, str], list[int]] = field(default_factory=dict)
    file_refused: bool = False

    def error(self, row: int | None, key: str | None, reason: str) -> None:
        """A fault that costs one row (or, with row None, the whole file's trust)."""
        self.errors.append(Problem(self.source, reason, row, key))

    def refuse_file(self, row: int | None, key: str | None, reason: str) -> None:
        """An error that makes the whole file unusable, once the rest of it has been looked at too."""
        self.error(row, key, reason)
        self.file_refused = True

    def warn(self, row: int, key: str | None, reason: str) -> None:
        """Something worth knowing that costs no row; counted by kind."""
        self.warned.setdefault((key, reason), []).append(row)

    def warnings(self) -> list[Problem]:
        """One problem of severity warning for each kind."""
        problems = []
        for (key, reason), rows in self.warned.items():
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            count = "1 row" if len(rows) == 1 else f"{len(rows)} rows: {shown}"
            problems.append(Problem(self.source, f"{reason} ({count})", rows[0], key, "warning"))
        return problems
