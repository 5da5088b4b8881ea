"""Asked against achieved: how many images of each modality and each value of the prompt list's columns there are.

A list may be balanced over findings and what passes the filter may not be; whoever trains on the images wants to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from medsyn.evaluation.gather import Gathered

MOST_VALUES = 24  # a column with more is a name or a measurement, not a category

ALL = ""  # in place of a column: the modality as a whole
Cell = tuple[str, str, str]  # modality, column, value


class _Counts:
    """Images by cell. A column is dropped once it has too many values in one modality."""

    def __init__(self) -> None:
        self.cells: Counter[Cell] = Counter()
        self.dropped: set[tuple[str, str]] = set()  # modality, column
        self._values: Counter[tuple[str, str]] = Counter()

    def add(self, modality: str, extra: Mapping[str, Any], images: int) -> None:
        """Count the images of one prompt."""
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

    def _drop(self, modality: str, column: str) -> None:
        self.dropped.add((modality, column))
        for cell in [cell for cell in self.cells if cell[:2] == (modality, column)]:
            del self.cells[cell]


def measure(gathered: Gathered, modes: Iterable[str], img_num: int) -> dict[str, Any]:
    """What was asked for and what is there, for metrics.json.

    Returns:
        `cells`: one record per modality, and per modality and value of a column, with the images that were `asked`
        for and, under each mode's name, those that were accepted. `dropped`: columns with too many values.
    """
    asked = _Counts()
    for modality, prompts in gathered.prompts.items():
        for item, images in prompts.each(img_num):
            asked.add(modality, item.extra, images)
    accepted: dict[str, Counter[Cell]] = {mode: Counter() for mode in modes}
    for modality, made in gathered.made.items():
        for mode, counts in accepted.items():
            for line in made[mode].manifest:
                if line["accepted"]:
                    extra = line.get("extra", {}).items()
                    counts.update([(modality, ALL, ALL), *((modality, column, str(value)) for column, value in extra)])
    order = {modality: place for place, modality in enumerate(gathered.modalities)}
    cells = sorted(asked.cells, key=lambda cell: (cell[1], order[cell[0]], cell[2]))
    return {
        "cells": [
            {
                "modality": cell[0],
                "column": cell[1] or None,
                "value": cell[2] or None,
                "asked": asked.cells[cell],
                **{mode: counts[cell] for mode, counts in accepted.items()},
            }
            for cell in cells
        ],
        "dropped": sorted({column for _, column in asked.dropped}),
    }
