"""Findings of a check of generated files, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsyn import disk


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the files."""

    place: Path
    what: str
    damaged: Path | None = None  # what a task regenerates once it is moved away, or that is missing; None: no task can

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def unread(error: OSError) -> str:
    """What is wrong with a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return str(error.strerror) if isinstance(error, disk.NotAFile) else f"cannot be read: {error.strerror}"


def name_item(prompt_id: object, replicate: object) -> str:
    """An item as findings name it."""
    return f"the image of prompt {prompt_id}, replicate {replicate},"
