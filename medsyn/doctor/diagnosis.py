"""One row of the table that `medsyn doctor` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SUBMITTING = "slurm takes jobs"  # the check that says whether this user can submit

Verdict = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Diagnosis:
    """What was checked, what was found, whether that is good, and what to do about it."""

    check: str
    value: str
    verdict: Verdict = "good"
    advice: str = ""
