"""What a check of generated files found: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the files."""

    place: Path
    what: str
    damaged: Path | None = None  # what must be out of the way before a task can make it again; None: nothing can

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def name_item(prompt_id: object, replicate: object) -> str:
    """An item as findings call it."""
    return f"the image of prompt {prompt_id}, replicate {replicate},"
