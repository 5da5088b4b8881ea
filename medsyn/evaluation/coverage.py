"""Requested and accepted images, by modality and by the values of the prompt list's columns.

A list may be balanced over findings while the images that pass the filter are not; users who train on them must know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from medsyn.evaluation.read_campaign import Gathered
from medsyn.evaluation.tally import ALL, Cells


def measure(gathered: Gathered, modes: Iterable[str], img_num: int) -> dict[str, Any]:
    """Count requested and accepted images, for metrics.json.

    Returns:
        `cells`: one record per modality, and per modality and value of a column, with the number of images `asked`
        for and, under each mode's name, of those accepted; the value None stands for prompts without a value in that
        column. `dropped`: columns with too many values.
    """
    asked = Cells()
    for modality, prompts in gathered.prompts.items():
        for item, images in prompts.each(img_num):
            asked.add(modality, item.extra, images)
    counts = {"asked": asked.table()}
    for mode in modes:
        counts[mode] = pd.concat(
            [Cells().table(), *(made[mode].tally.cells.table() for made in gathered.made.values())]
        )
    table = pd.DataFrame(counts).reindex(counts["asked"].index).fillna(0).astype(int)
    table = pd.concat([table, _without_value(table)])
    table = table[table.asked > 0].reset_index()
    table["modality"] = pd.Categorical(table.modality, gathered.modalities, ordered=True)
    table = table.sort_values(["column", "modality", "value"]).astype(object)
    return {
        "cells": table.where(table.notna() & (table != ALL), None).to_dict("records"),
        "dropped": sorted({column for _, column in asked.dropped}),
    }


def _without_value(table: pd.DataFrame) -> pd.DataFrame:
    """The images of prompts without a value, by modality and column: those in no value's cell."""
    is_whole = table.index.get_level_values("column") == ALL
    whole = table[is_whole].droplevel(["column", "value"])
    valued = table[~is_whole].groupby(["modality", "column"]).sum()
    rest = whole.reindex(valued.index, level="modality") - valued
    return rest.assign(value=None).set_index("value", append=True)
