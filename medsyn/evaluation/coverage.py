"""Asked against achieved: how many images of each modality and each value of the prompt list's columns there are.

A list may be balanced over findings and what passes the filter may not be; whoever trains on the images wants to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from medsyn.evaluation.read_campaign import Gathered
from medsyn.evaluation.tally import ALL, Cell, Cells


def measure(gathered: Gathered, modes: Iterable[str], img_num: int) -> dict[str, Any]:
    """What was asked for and what is there, for metrics.json.

    Returns:
        `cells`: one record per modality, and per modality and value of a column, with the images that were `asked`
        for and, under each mode's name, those that were accepted; a column whose value is None counts the images of
        prompts that have none in it. `dropped`: columns with too many values.
    """
    asked = Cells()
    for modality, prompts in gathered.prompts.items():
        for item, images in prompts.each(img_num):
            asked.add(modality, item.extra, images)
    accepted = {
        mode: Counter({cell: n for made in gathered.made.values() for cell, n in made[mode].tally.cells.cells.items()})
        for mode in modes
    }
    columns = {cell[:2] for cell in asked.cells if cell[1] != ALL}
    for counts in (asked.cells, *accepted.values()):
        counts.update(_without_value(counts, columns))
    order = {modality: place for place, modality in enumerate(gathered.modalities)}
    wanted = [cell for cell, images in asked.cells.items() if images]
    cells = sorted(wanted, key=lambda cell: (cell[1], order[cell[0]], not cell[2], cell[2]))
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


def _without_value(counts: Mapping[Cell, int], columns: Iterable[tuple[str, str]]) -> dict[Cell, int]:
    """The images of prompts without a value, by modality and column: those that no value's cell has."""
    valued: Counter[tuple[str, str]] = Counter()
    for (modality, column, _), images in counts.items():
        valued[modality, column] += images
    return {(*place, ""): counts.get((place[0], ALL, ""), 0) - valued[place] for place in columns}
