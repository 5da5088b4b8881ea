"""`python -m medsyn prompts`: check a prompt list, or build a balanced one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medsyn import disk
from medsyn.data import balance
from medsyn.data.balance import Balanced
from medsyn.data.prompt_writer import index_rows
from medsyn.data.prompts import PromptSource, new_faults
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError

CELLS_SHOWN = 60


def main(program: str, arguments: Sequence[str]) -> int:
    """Check a prompt list, or build one that is balanced."""
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checked = commands.add_parser("check", help="list everything that is wrong with a prompt list, and what is in it")
    checked.add_argument("list", type=Path, metavar="FILE", help="CSV, JSON lines, Parquet or text")
    balanced = commands.add_parser("balance", help="as many images of every combination of some columns' values")
    balanced.add_argument("source", type=Path, metavar="SOURCE", help="a data set's table, or a prompt list")
    balanced.add_argument("--by", default="modality", metavar="COLUMN,...", help="such as modality,finding")
    amount = balanced.add_mutually_exclusive_group(required=True)
    amount.add_argument("--total", type=int, metavar="N", help="images in all")
    amount.add_argument("--per-cell", type=int, metavar="N", help="images of each combination")
    balanced.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .csv or .jsonl file")
    balanced.add_argument("--seed", type=int, default=0, help="which captions are taken where there are too many (0)")
    args = parser.parse_args(arguments)
    return _check(args.list) if args.command == "check" else _balance(args)


def _check(path: Path) -> int:
    source, faults = PromptSource.file(path), new_faults(path)
    index = index_rows(source.rows(faults))
    for problem in [*faults.all_errors(), *faults.warnings()]:
        print(f"{problem.severity}: {problem}")
    for modality, runs in index.modalities.items():
        images = [f"{sum(run.images for run in runs)} images"] if any(run.counted for run in runs) else []
        plain = sum(run.plain for run in runs)
        images += [f"generation.img_num images of {plain} prompts"] if plain else []
        print(f"{modality}: {sum(run.prompts for run in runs)} prompts, {' and '.join(images)}")
    return EXIT_BAD_INPUT if faults.errors else EXIT_DONE


def _balance(args: argparse.Namespace) -> int:
    columns = list(dict.fromkeys(column.strip() for column in args.by.split(",") if column.strip()))
    number = args.total if args.per_cell is None else args.per_cell
    if not columns:
        raise InputError("--by", "names no column")
    if number < 1:
        raise InputError("--total" if args.per_cell is None else "--per-cell", f"{number} is not 1 or more")
    if args.out.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(args.out, "the list is written as a .csv or a .jsonl file")
    if args.out.exists():
        raise InputError(args.out, "is there already; choose another --out")
    balanced = balance.balance(args.source, columns, args.total, args.per_cell, args.seed)
    try:
        disk.write_atomic(args.out, balance.as_text(balanced, args.out.suffix.lower()))
    except OSError as error:
        raise InputError(args.out, f"cannot be written: {error.strerror}") from None
    _show(balanced, args.out)
    return EXIT_DONE


def _show(balanced: Balanced, path: Path) -> None:
    table = Table(*balanced.columns)
    for column in ("captions", "images", "of one caption at most"):
        table.add_column(column, justify="right")
    for cell in balanced.cells[:CELLS_SHOWN]:
        table.add_row(*cell.values, str(cell.captions), str(cell.images), str(cell.most_of_one))
    console = Console()
    console.print(table)
    if len(balanced.cells) > CELLS_SHOWN:
        print(f"and {len(balanced.cells) - CELLS_SHOWN} more")
    repeated = sum(cell.images > cell.captions for cell in balanced.cells)
    if repeated:
        print(f"{repeated} of {len(balanced.cells)} have fewer captions than images: captions are repeated (column n)")
    if balanced.left_out:
        print(f"{balanced.left_out} rows were left out: they have no value in {', '.join(balanced.columns)}")
    images = sum(cell.images for cell in balanced.cells)
    print(f"{path}: {images} images of {len(balanced.rows)} prompts in {len(balanced.cells)} cells")
