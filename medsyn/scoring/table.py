"""Scored images as rows of a table: written as they come, or in the order of a column."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from medsyn.models.quality import FEATURES
from medsyn.scoring.score import ScoredImage

_OWN = (
    *("file", "modality", "selector", "selector_spread", "unfamiliar", "threshold", "passes"),
    *("policy", "policy_spread"),
)
COLUMNS = (*_OWN, *FEATURES)


def row_of(image: ScoredImage) -> dict[str, Any]:
    """The values of an image's row, by column."""
    return {name: getattr(image, name) for name in _OWN} | image.metrics


def ordered(images: Iterable[ScoredImage], column: str, descending: bool = False) -> Iterator[ScoredImage]:
    """The images in the order of a column; those that have no value come last, equal ones as they came.

    All but the values of the column wait in a temporary file: a million of them fit.
    """
    keys: list[tuple[Any, int]] = []
    without: list[int] = []
    with tempfile.TemporaryFile("w+") as kept:
        for image in images:
            value, place = row_of(image)[column], kept.tell()
            if value is None:
                without.append(place)
            else:
                keys.append((value, place))
            kept.write(json.dumps(vars(image)) + "\n")
        keys.sort(key=lambda one: one[0], reverse=descending)
        for place in [*(place for _, place in keys), *without]:
            kept.seek(place)
            yield ScoredImage(**json.loads(kept.readline()))


def csv_lines(images: Iterable[ScoredImage]) -> Iterator[str]:
    """The lines of a CSV table, the header first: numbers to six digits, `true` or `false`, nothing where unknown."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")

    def line(values: Iterable[Any]) -> str:
        stream.seek(0)
        stream.truncate()
        writer.writerow(values)
        return stream.getvalue()

    yield line(COLUMNS)
    for image in images:
        row = row_of(image)
        yield line(_cell(row.get(column)) for column in COLUMNS)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def json_lines(images: Iterable[ScoredImage]) -> Iterator[str]:
    """The pieces of a JSON array of rows."""
    yield "["
    for number, image in enumerate(images):
        yield ("," if number else "") + "\n  " + json.dumps(row_of(image), ensure_ascii=False)
    yield "\n]"
