"""A prompt list with the same number of images for every combination (cell) of the values of some columns.

The source (a data set's captions, or a prompt list) is read twice and never held: the first pass finds the cells, the
second keeps as many captions of each as are wanted: the first ones in an order drawn by the seed.
"""

from __future__ import annotations

import csv
import heapq
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

from medsyn.config import MOST_IMAGES
from medsyn.data.prompts.formats import COLUMNS, table_kind
from medsyn.data.prompts.hash_counter import Seen
from medsyn.data.prompts.rows import PromptRow, PromptSource, Scalar, new_faults
from medsyn.data.tables.csv_rows import check_text_file, column_places, csv_rows, require_csv, text_lines
from medsyn.data.tables.identifiers import may_identify
from medsyn.data.tables.row_errors import Faults, show
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.modality_names import MODALITIES
from medsyn.seeds import seed
from medsyn.text import counted, did_you_mean

MOST_CELLS = 10_000

Cell = tuple[str, ...]  # one value per column


@dataclass(frozen=True)
class BalancedCell:
    """One cell: how many captions it has, and how many images are requested."""

    values: Cell
    captions: int
    images: int

    @property
    def most_of_one(self) -> int:
        """Images of the caption that gets the most."""
        return -(-self.images // self.captions)


@dataclass(frozen=True)
class Balanced:
    """A balanced list."""

    columns: Sequence[str]
    cells: list[BalancedCell]
    rows: list[PromptRow]  # each with its `n`
    left_out: int  # rows of the source without a value in one of the columns, or of other modalities
    warnings: Sequence[Problem] = ()  # about the source
    of_all_modalities: bool = True

    def absent(self, most: int) -> list[Cell]:
        """Combinations of the columns' values that no row of the source has, at most `most` of them."""
        values = [sorted(set(column)) for column in zip(*(cell.values for cell in self.cells), strict=True)]
        there = {cell.values for cell in self.cells}
        return list(islice((cell for cell in product(*values) if cell not in there), most))


def balance(
    path: Path,
    columns: Sequence[str],
    total: int | None = None,
    per_cell: int | None = None,
    draw: int = 0,
    modalities: Collection[str] = MODALITIES,
) -> Balanced:
    """Choose prompts so that every cell gets the same number of images, or one more.

    Args:
        path: a data set's table (captions are prompts, with its modality) or a prompt list.
        columns: `modality` or passthrough columns, as the source names them, ignoring case.
        total: images in all.
        per_cell: images of each cell; give one of the two.
        draw: the seed that decides which captions are used if there are more than needed.
        modalities: as `data.modalities`; rows that belong to none of them are left out.

    Raises:
        InputError, InputProblems: the source cannot be read, or has no such column.
    """
    for column in columns:
        if column.casefold() in COLUMNS and column.casefold() != "modality":
            raise InputError("--by", f"{show(column)} is a setting of the generation and cannot be balanced")
        if may_identify(column):
            reason = "may identify patients, and what a list is balanced by goes along with every image"
            raise InputError("--by", f"{show(column)} {reason}; if it does not, rename the column")
    source = _source(path, columns, modalities)
    faults = new_faults(source.name)
    captions, left_out, names = _count(source, columns, faults)
    cells = sorted(captions)
    wanted = dict.fromkeys(cells, per_cell or 0)
    if total is not None:
        if total < len(cells):
            are = f"{counted(total, 'image')} {'is' if total == 1 else 'are'}"
            raise InputError("--total", f"{are} fewer than the {len(cells)} cells of {', '.join(columns)}")
        lucky = sorted(cells, key=lambda cell: seed(draw, "cell", *cell))[: total % len(cells)]
        wanted = {cell: total // len(cells) + (cell in lucky) for cell in cells}
    if max(-(-wanted[cell] // captions[cell]) for cell in cells) > MOST_IMAGES:
        flag = "--total" if per_cell is None else "--per-cell"
        raise InputError(flag, f"asks for more than {MOST_IMAGES} images of one prompt")
    chosen = _choose(source, columns, wanted, draw)
    return Balanced(
        names,
        [BalancedCell(cell, captions[cell], wanted[cell]) for cell in cells],
        [row for cell in cells for row in _share(chosen[cell], wanted[cell])],
        left_out,
        faults.warnings(),
        set(MODALITIES) <= set(modalities),
    )


def as_text(balanced: Balanced, suffix: str) -> str:
    """The list as a file's content; `suffix` is `.csv` or `.jsonl`."""
    records = [_record(row) for row in balanced.rows]
    if suffix == ".jsonl":
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    header = list(dict.fromkeys(column for record in records for column in record))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def formulas(balanced: Balanced) -> list[str]:
    """The passthrough columns with a text that a spreadsheet would calculate."""
    found: dict[str, None] = {}
    for row in balanced.rows:
        found |= {name: None for name, value in row.extra.items() if isinstance(value, str) and _is_formula(value)}
    return list(found)


def _is_formula(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value.startswith(("=", "+", "-", "@"))
    return False


def _record(row: PromptRow) -> dict[str, Scalar]:
    known = {"id": row.prompt_id, **{column: getattr(row, column) for column in COLUMNS if column != "id"}}
    return {column: value for column, value in known.items() if value is not None} | dict(row.extra)


def _source(path: Path, columns: Sequence[str], modalities: Collection[str]) -> PromptSource:
    """The prompts of a file; of a data set's table its captions, with the requested columns."""
    if table_kind(path) == "prompts":
        return PromptSource.file(path, modalities=modalities)

    def records(faults: Faults) -> Iterator[tuple[int, Mapping[str, Any]]]:
        require_csv(path)
        check_text_file(path)
        further = [column for column in columns if column.casefold() not in COLUMNS]

        def places(header: list[str]) -> dict[str, int]:
            named = [name.strip() for name in header if name.strip()]
            for column in further:
                if column.casefold() not in map(str.casefold, named):
                    raise InputError(faults.source, _no_column(column, named))
            found = column_places(faults.source, header, ("Text", "modality", *further), (), {})
            return {header[place].strip() if column in further else column: place for column, place in found.items()}

        for line, row in csv_rows(faults, text_lines(path), places):
            yield line, {"prompt" if column == "Text" else column: value for column, value in row.items()}

    return PromptSource(str(path), records, modalities=modalities)


def _cell(row: PromptRow, columns: Sequence[str]) -> tuple[Cell, list[str]] | None:
    """The row's values in `columns` and the columns' own names; None if it lacks one of the values."""
    values, names = [], []
    own = {column.casefold(): column for column in row.extra}
    for column in columns:
        name = own.get(column.casefold(), column.casefold())
        value = row.modality if name == "modality" else row.extra.get(name)
        if value is None or value == "":
            return None
        values.append(str(value))
        names.append(name)
    return tuple(values), names


def _count(source: PromptSource, columns: Sequence[str], faults: Faults) -> tuple[Counter[Cell], int, list[str]]:
    """Captions of each cell, the number of rows that belong to none, and the source's names of the columns."""
    captions: Counter[Cell] = Counter()
    seen, left_out, names = Seen(), 0, list(columns)
    known: dict[str, None] = {}
    for row in source.rows(faults):
        known.update(dict.fromkeys(row.extra))
        found = _cell(row, columns) if row.modality in source.modalities else None
        if found is None:
            left_out += 1
        elif seen.count(_key(found[0], row)) == 1:
            captions[found[0]] += 1
            names = found[1]
        if len(captions) > MOST_CELLS:
            raise InputError(source.name, f"{', '.join(columns)} have more than {MOST_CELLS} combinations of values")
    if faults.errors:
        raise InputProblems(faults.all_errors())
    names_there = ("modality", *known)
    absent = [column for column in columns if column.casefold() not in map(str.casefold, names_there)]
    if absent and not captions:
        raise InputError(source.name, _no_column(absent[0], names_there))
    if not captions:
        there = ", ".join(map(show, names_there))
        raise InputError(source.name, f"no row has a value in each of {', '.join(columns)}; the columns are {there}")
    return captions, left_out, names


def _no_column(column: str, names: Iterable[str]) -> str:
    """The message that a source has no such column, with a suggestion."""
    there = list({name.casefold(): name for name in names}.values())
    meant = did_you_mean(column, there, show=show)
    return f"there is no column {show(column)} (--by); the columns are {', '.join(map(show, there))}{meant}"


def _choose(source: PromptSource, columns: Sequence[str], wanted: Mapping[Cell, int], draw: int) -> dict[Cell, list]:
    """The rows of each cell that are drawn first, at most as many as images are wanted."""
    kept: dict[Cell, list[tuple[int, int, PromptRow]]] = {cell: [] for cell in wanted}
    seen = Seen()
    for number, row in enumerate(source.rows(new_faults(source.name))):
        found = _cell(row, columns) if row.modality in source.modalities else None
        if found is None or found[0] not in kept or seen.count(_key(found[0], row)) > 1:
            continue
        cell = kept[found[0]]
        heapq.heappush(cell, (-seed(draw, "balance", row.modality, row.prompt), number, row))
        if len(cell) > wanted[found[0]]:
            heapq.heappop(cell)
    return {cell: [row for _, _, row in sorted(rows, reverse=True)] for cell, rows in kept.items()}


def _key(cell: Cell, row: PromptRow) -> str:
    return json.dumps([cell, row.prompt])


def _share(rows: Sequence[PromptRow], images: int) -> list[PromptRow]:
    """The rows with `images` distributed over them as evenly as possible."""
    each, rest = divmod(images, len(rows))
    return [replace(row, n=each + (place < rest)) for place, row in enumerate(rows)]
