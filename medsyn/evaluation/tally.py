"""Counts over the records of generation, taken one block at a time, so memory does not grow with the campaign.

The records themselves are never in memory together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

MOST_VALUES = 24  # a column with more is a name or a measurement, not a category
EXHAUSTED_NAMED = 100  # of the prompts without an accepted image this many are named, the rest counted
SCORE_BINS = np.linspace(0, 1, 41)

ALL = ""  # in place of a column: the modality as a whole


class Cells:
    """Images by cell. A column is dropped once it has too many values in one modality."""

    def __init__(self) -> None:
        self.cells: Counter[tuple[str, str, str]] = Counter()  # by modality, column, value
        self.dropped: set[tuple[str, str]] = set()  # modality, column
        self._values: Counter[tuple[str, str]] = Counter()

    def add(self, modality: str, extra: Mapping[str, Any], images: int) -> None:
        """Count images of a prompt with the passthrough columns `extra`."""
        self.cells[modality, ALL, ALL] += images
        for column, value in extra.items():
            if value is None or value == "" or (modality, column) in self.dropped:
                continue
            cell = (modality, column, str(value))
            if cell not in self.cells:
                self._values[modality, column] += 1
                if self._values[modality, column] > MOST_VALUES:
                    self._drop(modality, column)
                    continue
            self.cells[cell] += images

    def table(self) -> pd.Series:
        """The counts by modality, column and value."""
        index = pd.MultiIndex.from_tuples(self.cells, names=("modality", "column", "value"))
        return pd.Series(self.cells.values(), index, dtype=int)

    def _drop(self, modality: str, column: str) -> None:
        self.dropped.add((modality, column))
        for cell in [cell for cell in self.cells if cell[:2] == (modality, column)]:
            del self.cells[cell]


@dataclass
class Mean:
    """The mean of the values that are present and finite."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        """Add a value, if it is present and finite."""
        if value is not None and math.isfinite(value):
            self.total += value
            self.count += 1

    def merge(self, other: Mean) -> None:
        """Add all values of another mean."""
        self.total += other.total
        self.count += other.count

    @property
    def value(self) -> float | None:
        """The mean, or None without a value."""
        return self.total / self.count if self.count else None


@dataclass
class Tally:
    """Cost and yield of generation, for one mode and modality, or merged."""

    requested: int = 0
    accepted: int = 0
    attempts: int = 0
    passed: int = 0
    exhausted: int = 0  # prompts without an accepted image
    exhausted_prompts: list[str] = field(default_factory=list)  # the first of them
    selector: Mean = field(default_factory=Mean)  # of accepted images
    policy: Mean = field(default_factory=Mean)
    spread: Mean = field(default_factory=Mean)  # of the Selector's networks, on accepted images
    marked: int = 0  # candidates of which it is known whether they are unfamiliar to the Selector, and
    unfamiliar: int = 0  # those that are
    unfamiliar_accepted: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)  # the Selector score that was needed, by modality
    seconds: float | None = None
    unet_evaluations: int | None = None
    passed_scores: np.ndarray = field(default_factory=lambda: np.zeros(len(SCORE_BINS) - 1, np.int64))  # candidates
    rejected_scores: np.ndarray = field(default_factory=lambda: np.zeros(len(SCORE_BINS) - 1, np.int64))
    cells: Cells = field(default_factory=Cells)  # of accepted images
    _last: str | None = None  # the prompt last counted as exhausted: its replicates are neighbours

    def add_images(self, modality: str, manifest: Iterable[Mapping[str, Any]]) -> None:
        """Count a block's records of images, in the order of the prompt list."""
        for line in manifest:
            self.requested += 1
            if (threshold := line.get("quality_threshold")) is not None:
                self.thresholds[modality] = threshold
            if line["accepted"]:
                self.accepted += 1
                self.selector.add(line["selector"])
                self.policy.add(line["policy"])
                self.spread.add(line.get("selector_spread"))
                self.unfamiliar_accepted += bool(line.get("unfamiliar"))
                self.cells.add(modality, line.get("extra", {}), 1)
            elif line["id"] != self._last:
                self._last = line["id"]
                self.exhausted += 1
                if len(self.exhausted_prompts) < EXHAUSTED_NAMED:
                    self.exhausted_prompts.append(line["id"])

    def add_candidates(self, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Count a block's records of candidates."""
        self.attempts += len(attempts)
        self.passed += sum(bool(line["passed"]) for line in attempts)
        marks = [mark for line in attempts if (mark := line.get("unfamiliar")) is not None]
        self.marked += len(marks)
        self.unfamiliar += sum(marks)
        for passed, counts in ((True, self.passed_scores), (False, self.rejected_scores)):
            scores = [line["selector"] for line in attempts if bool(line["passed"]) == passed]
            counts += np.histogram([score for score in scores if score is not None], SCORE_BINS)[0]

    def add_timing(self, timing: Mapping[str, Any]) -> None:
        """Add a block's seconds and UNet evaluations."""
        self.seconds = (self.seconds or 0.0) + timing["seconds"]
        if timing.get("unet_evaluations") is not None:
            self.unet_evaluations = (self.unet_evaluations or 0) + timing["unet_evaluations"]

    def merge(self, other: Tally) -> None:
        """Add another modality's tally, except its cells."""
        self.requested += other.requested
        self.accepted += other.accepted
        self.attempts += other.attempts
        self.passed += other.passed
        self.exhausted += other.exhausted
        self.exhausted_prompts = [*self.exhausted_prompts, *other.exhausted_prompts][:EXHAUSTED_NAMED]
        self.selector.merge(other.selector)
        self.policy.merge(other.policy)
        self.spread.merge(other.spread)
        self.marked += other.marked
        self.unfamiliar += other.unfamiliar
        self.unfamiliar_accepted += other.unfamiliar_accepted
        self.thresholds |= other.thresholds
        if other.seconds is not None:
            self.add_timing({"seconds": other.seconds, "unet_evaluations": other.unet_evaluations})
        self.passed_scores += other.passed_scores
        self.rejected_scores += other.rejected_scores

    def summary(self) -> dict[str, Any]:
        """The numbers for metrics.json."""
        accepted, timed = self.accepted, self.seconds is not None
        return {
            "requested": self.requested,
            "accepted": accepted,
            "acceptance_rate": accepted / self.requested if self.requested else None,
            "attempts": self.attempts,
            "attempt_pass_rate": self.passed / self.attempts if self.attempts else None,
            "attempts_per_accepted": self.attempts / accepted if accepted and self.attempts else None,
            "selector_mean": self.selector.value,
            "policy_mean": self.policy.value,
            "selector_spread_mean": self.spread.value,
            "quality_thresholds": self.thresholds,
            "unfamiliar_rate": self.unfamiliar / self.marked if self.marked else None,
            "unfamiliar_accepted": self.unfamiliar_accepted,
            "exhausted": self.exhausted,
            "exhausted_prompts": self.exhausted_prompts,
            "seconds": self.seconds,
            "seconds_per_accepted": (self.seconds or 0.0) / accepted if timed and accepted else None,
            "unet_evaluations": self.unet_evaluations,
        }


def total(tallies: Iterable[Tally]) -> Tally:
    """Several tallies as one."""
    merged = Tally()
    for tally in tallies:
        merged.merge(tally)
    return merged
