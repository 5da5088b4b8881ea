"""`medsyn prompts`: check a prompt list, or build a balanced one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medsyn import disk
from medsyn.config import MOST_IMAGES
from medsyn.data.prompts import balance
from medsyn.data.prompts.balance import Balanced
from medsyn.data.prompts.rows import PromptSource, new_faults
from medsyn.data.prompts.write import index_rows
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, InputProblems, Problem, grouped
from medsyn.modality_names import MODALITIES, canonical_name
from medsyn.stage import campaign_above
from medsyn.text import counted

CELLS_SHOWN, CELLS_NAMED = 60, 8


def main(program: str, arguments: Sequence[str]) -> int:
    """Check a prompt list, or build a balanced one."""
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checked = commands.add_parser("check", help="list what is wrong with a prompt list, and count its prompts")
    checked.add_argument("list", type=Path, metavar="FILE", help="CSV, JSON lines, Parquet or text")
    balanced = commands.add_parser("balance", help="build a list with equally many images of each combination")
    balanced.add_argument("source", type=Path, metavar="SOURCE", help="a data set's table, or a prompt list")
    balanced.add_argument("--by", default="modality", metavar="COLUMN,...", help="such as modality,finding")
    amount = balanced.add_mutually_exclusive_group(required=True)
    amount.add_argument("--total", type=int, metavar="N", help="images in all")
    amount.add_argument("--per-cell", type=int, metavar="N", help="images of each combination")
    balanced.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .csv or .jsonl file")
    for command in (checked, balanced):
        text = "as data.modalities of the campaign, such as 'Brain MRI,Breast MRI' (the five)"
        command.add_argument("--modalities", default=",".join(MODALITIES), metavar="NAME,...", help=text)
    balanced.add_argument("--seed", type=int, default=0, help="decides which of too many captions are taken (0)")
    args = parser.parse_args(arguments)
    return _check(args) if args.command == "check" else _balance(args)


def _check(args: argparse.Namespace) -> int:
    modalities, problems = named_modalities(args.modalities)
    if problems:
        raise InputProblems(problems)
    source, faults = PromptSource.file(args.list, modalities=modalities), new_faults(args.list)
    index = index_rows(source.rows(faults))
    for problem in grouped([*faults.all_errors(), *faults.warnings()]):
        print(f"{problem.severity}: {problem}")
    for modality, runs in index.modalities.items():
        images = [counted(sum(run.images for run in runs), "image")] if any(run.counted for run in runs) else []
        plain = sum(run.plain for run in runs)
        images += [f"generation.img_num images of {counted(plain, 'prompt')}"] if plain else []
        print(f"{modality}: {counted(sum(run.prompts for run in runs), 'prompt')}, {' and '.join(images)}")
    return EXIT_BAD_INPUT if faults.errors else EXIT_DONE


def _balance(args: argparse.Namespace) -> int:
    columns = list(dict.fromkeys(column.strip() for column in args.by.split(",") if column.strip()))
    modalities, problems = named_modalities(args.modalities)
    problems += _wrong_arguments(args, columns)
    if problems:
        raise InputProblems(problems)
    balanced = balance.balance(args.source, columns, args.total, args.per_cell, args.seed, modalities)
    try:
        disk.write_atomic(args.out, balance.as_text(balanced, args.out.suffix.lower()))
    except OSError as error:
        raise InputError(args.out, f"cannot be written: {error.strerror}") from None
    if args.out.suffix.lower() == ".csv" and (formulas := balance.formulas(balanced)):
        named = ", ".join(formulas)
        print(f"warning: {args.out}: values of {named} begin as a spreadsheet's formulas do; import them as text")
    for warning in balanced.warnings:
        print(f"warning: {warning}")
    _show(balanced, args.out)
    return EXIT_DONE


def named_modalities(text: str) -> tuple[list[str], list[Problem]]:
    """The canonical names in a text such as `Brain MRI,CT`, and what is wrong with it."""
    names, problems = [], []
    for name in text.split(","):
        try:
            names.append(canonical_name(name))
        except ValueError as error:
            problems.append(Problem("--modalities", f"{error}, got {name.strip()!r:.100}"))
    return names, problems


def _wrong_arguments(args: argparse.Namespace, columns: Sequence[str]) -> Iterator[Problem]:
    """What is wrong before the source is read."""
    flag, number = ("--total", args.total) if args.per_cell is None else ("--per-cell", args.per_cell)
    if not columns:
        yield Problem("--by", "names no column")
    if number < 1:
        yield Problem(flag, f"{number} is not 1 or more")
    if args.per_cell is not None and number > MOST_IMAGES:
        yield Problem(flag, f"{number} is more than {MOST_IMAGES}, the most images of one prompt")
    if args.out.suffix.lower() not in (".csv", ".jsonl"):
        yield Problem(str(args.out), "must end in .csv or .jsonl")
    try:
        if (campaign := campaign_above(args.out)) is not None:
            yield Problem(str(args.out), f"is inside a campaign's directory ({campaign}); choose another --out")
        if args.out.exists():
            yield Problem(str(args.out), "already exists; choose another --out")
            return
        existing = next(parent for parent in args.out.absolute().parents if parent.exists())
    except OSError as error:
        yield Problem(str(args.out)[:200], f"cannot be written: {error.strerror}")
        return
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Problem(str(args.out), f"cannot be written: {existing} is not a writable directory")


def _show(balanced: Balanced, path: Path) -> None:
    table = Table(*map(escape, balanced.columns))
    for column in ("captions", "images", "of one caption at most"):
        table.add_column(column, justify="right")
    for cell in balanced.cells[:CELLS_SHOWN]:
        table.add_row(*map(escape, cell.values), str(cell.captions), str(cell.images), str(cell.most_of_one))
    console = Console()
    console.print(table)
    if len(balanced.cells) > CELLS_SHOWN:
        print(f"and {len(balanced.cells) - CELLS_SHOWN} more")
    repeated = [cell.values for cell in balanced.cells if cell.images > cell.captions]
    if repeated:
        have = "has" if len(repeated) == 1 else "have"
        what = f"{have} fewer captions than images: captions are repeated (column n)"
        print(f"{len(repeated)} of {len(balanced.cells)} {what}: {_named(repeated)}")
    absent = balanced.absent(CELLS_NAMED + 1)
    if absent:
        more = "at least " if len(absent) > CELLS_NAMED else ""
        are = "is in no row and gets" if len(absent) == 1 else "are in no row and get"
        print(f"{more}{counted(len(absent), 'combination')} of values {are} no image: {_named(absent)}")
    if balanced.left_out:
        were = "was left out: it has" if balanced.left_out == 1 else "were left out: they have"
        other = "" if balanced.of_all_modalities else ", or another modality than those of --modalities"
        print(f"{counted(balanced.left_out, 'row')} {were} no value in {', '.join(balanced.columns)}{other}")
    images = sum(cell.images for cell in balanced.cells)
    prompts, cells = counted(len(balanced.rows), "prompt"), counted(len(balanced.cells), "cell")
    print(f"{path}: {counted(images, 'image')} of {prompts} in {cells}")


def _named(cells: Sequence[balance.Cell]) -> str:
    """The first few cells by their values."""
    named = ["/".join(cell) for cell in cells[:CELLS_NAMED]]
    return ", ".join([*named, "..."] if len(cells) > CELLS_NAMED else named)
