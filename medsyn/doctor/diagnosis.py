"""One row of the table that `medsyn doctor` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Diagnosis:
    """What was checked, what was found, whether that is good, and what to do about it."""

    check: str
    value: str
    verdict: Verdict = "good"
    advice: str = ""
