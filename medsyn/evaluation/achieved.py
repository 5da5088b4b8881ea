"""Asked against achieved: how many images of each modality and each value of the prompt list's columns there are.

A list may be balanced over findings and what passes the filter may not be; whoever trains on the images wants to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from medsyn.evaluation.gather import Gathered
from medsyn.evaluation.tally import Cells


def measure(gathered: Gathered, modes: Iterable[str], img_num: int) -> dict[str, Any]:
    """What was asked for and what is there, for metrics.json.

    Returns:
        `cells`: one record per modality, and per modality and value of a column, with the images that were `asked`
        for and, under each mode's name, those that were accepted. `dropped`: columns with too many values.
    """
    asked = Cells()
    for modality, prompts in gathered.prompts.items():
        for item, images in prompts.each(img_num):
            asked.add(modality, item.extra, images)
    accepted = {
        mode: Counter({cell: n for made in gathered.made.values() for cell, n in made[mode].tally.cells.cells.items()})
        for mode in modes
    }
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
