"""Which copies of real images does the search find, how often is it wrong, and what does it cost?

    python benchmarks/copies.py metadata.csv --side 64 --planted 20
    python benchmarks/copies.py metadata.csv --patients provenance.csv    # its columns `path` and `patient`

Copies of each kind are planted in a data set's own images, modality by modality. The threshold is that of
`medsyn copies`; what it lets pass is counted on honest images of patients that had no part in setting it. Intervals are
Wilson's, 95 %. Cost is CPU time of one core.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from medsyn import disk
from medsyn.errors import Problem
from medsyn.evaluation.memorization.assess import Effort
from medsyn.evaluation.memorization.read import real_pictures
from medsyn.evaluation.memorization.search import Honest, Library, Picture, honest, planted_recall, threshold
from medsyn.evaluation.metrics import wilson
from medsyn.models.image_features import shrink


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", type=Path, help="data set")
    parser.add_argument("--patients", type=Path, help="table with the patient of each path, if the data set has none")
    parser.add_argument("--side", type=int, default=64, help="pixels that images are reduced to (64)")
    parser.add_argument("--planted", type=int, default=Effort.planted, help="copies of each kind and modality (20)")
    parser.add_argument("--honest", type=int, default=Effort.honest, help="honest images of each modality (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()

    pictures = read(args.table, args.patients, args.side)
    modalities = sorted({picture.modality for picture in pictures})
    looked = [0]

    def tick() -> None:
        looked[0] += 1

    started = time.process_time()
    libraries = [Library([one for one in pictures if one.modality == name], tick) for name in modalities]
    indexing = (time.process_time() - started) / len(pictures)
    looked[0], started = 0, time.process_time()
    known = {library: found for library in libraries if (found := honest(library, args.honest, args.seed, tick))}
    recall = recall_of(known, args.planted, args.seed, tick)
    searching = (time.process_time() - started) / looked[0]
    show(Console(), known, recall, indexing, searching)
    if args.json:
        limit = threshold(list(known.values()))
        figures = {"recall": recall, "false_positives": limit.false_positives, "patients": limit.patients}
        disk.write_json(args.json, figures | {"index_seconds": indexing, "search_seconds": searching})
    return 0


def read(path: Path, patients: Path | None, side: int) -> list[Picture]:
    """The images of a data set, at most `side` pixels large; those that cannot be read are left out."""
    problems: list[Problem] = []
    found = list(real_pictures([path], None, lambda done, total: None, problems))
    if patients is not None:
        with patients.open(encoding="utf-8", newline="") as stream:
            of = {row["path"]: row["patient"] for row in csv.DictReader(stream)}
        found = [replace(picture, patient=of.get(picture.name.split(" (")[0], picture.patient)) for picture in found]
    return [replace(picture, pixels=reduced(picture.pixels, side)) for picture in found]


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """Grey uint8 [S, S], at most `side` pixels a side."""
    if len(pixels) <= side:
        return pixels
    return shrink(np.repeat(pixels[..., None], 3, axis=2), side)[..., 0]


def recall_of(
    known: dict[Library, Honest], planted: int, seed: int, tick: Callable[[], None]
) -> dict[str, tuple[int, int]]:
    """(found, planted) of each kind, over all modalities."""
    limit, total = threshold(list(known.values())), dict[str, tuple[int, int]]()
    for library, its in known.items():
        for kind, (found, of) in planted_recall(library, its, limit, planted, seed, tick).items():
            before = total.get(kind, (0, 0))
            total[kind] = before[0] + found, before[1] + of
    return total


def show(
    console: Console,
    known: dict[Library, Honest],
    recall: dict[str, tuple[int, int]],
    indexing: float,
    searching: float,
) -> None:
    """Print the tables."""
    limit = threshold(list(known.values()))
    table = Table("copies planted on purpose", "found", "95 % interval", "n")
    for kind, (found, of) in recall.items():
        low, high = wilson(found, of)
        table.add_row(kind, f"{found / of:.3f}", f"{low:.3f} to {high:.3f}", str(of))
    console.print(table)
    share = limit.false_positives
    interval = f"[{share['low']:.3f}, {share['high']:.3f}]"
    console.print(
        f"honest images that pass: {share['value']:.3f} {interval}, n = {share['n']}, {limit.patients} patients"
    )
    console.print(f"CPU seconds: {indexing:.3f} to describe a real image, {searching:.3f} to look for a source")


if __name__ == "__main__":
    raise SystemExit(main())
