"""Do the Selector and the Policy know a bad image when they see one?

    python benchmarks/scorers.py --data DIRECTORY [--rows ratings clean …] [--seeds 5]

Trains scorers by the campaign's own stages, in the default configuration (configs/tiny.yaml; `--set` changes it and
the table says so), and asks them about images that they have not seen. A group, which is a patient or an image with its
damaged copies, is never on both sides. Images: those of DIRECTORY (metadata.csv, provenance.csv with path and patient,
ratings.csv, ratings_provenance.csv with image_path, base and detail), and phantoms. Intervals are bootstraps over
groups of all seeds together; beside them the mean and standard deviation over seeds. Nothing is chosen by these images.

Rows of the Selector: `ratings` (AUROC of rating 1 against 2-3), `calibration`, `clean` (clean images that pass, and
with 5 grey levels more), `rejected` (shuffled, stitched, white noise), `triples` (clean > mild > strong, of those whose
severities change the image by amounts that differ), `kinds` (whole families of damage never shown, in turn), `faults`
(generators' own: families of ways of sampling badly never shown, in turn) and `filtering` (what choosing by the scorers
gains with a poor generator). `passing` asks the Selectors of `--campaign DIRECTORY`, one of configs/tiny.yaml that is
done, what their thresholds let through. `policy`: its win rates, by benchmarks/policy.py, which has further questions.
`ways` (are bad samples really worse?) trains no scorer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from scoring import faults, filtering, passing, policy, selector, worse
from scoring.figures import show
from scoring.images import RatedImages, phantoms, real

from medsyn.data.degradations.kinds import DEGRADATIONS
from medsyn.training.scorers.ways import WAYS

CROSSED = ("ratings", "calibration", "clean", "rejected", "triples")
ROWS = (*CROSSED, "kinds", "faults", "passing", "filtering", "policy", "ways")
ON_PHANTOMS = {"filtering": filtering.figures, "ways": worse.figures}  # whose truth is known
POLICY_PHANTOMS = 48  # fresh ones of each kind
FAMILIES = tuple(dict.fromkeys(kind.family for kind in DEGRADATIONS.values()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        sets = [phantoms(Path(folder) / "phantoms", args.phantoms)] if args.phantoms else []
        if args.data is None:
            console.print("real images: skipped, because --data names none")
        elif not (args.data / "ratings_provenance.csv").is_file():
            console.print(f"real images: skipped, because {args.data} has no ratings_provenance.csv")
        else:
            sets.insert(0, real(args.data))
        for images in sets:
            measure(console, images, args)
        if args.campaign is not None and "passing" in args.rows:
            show(console, f"passing: {args.campaign}", passing.figures(args.campaign))
        if "policy" in args.rows:
            ask_the_policy(console, args)
        for name in ON_PHANTOMS:
            if args.phantoms and name in args.rows:
                show(
                    console, f"{name}, phantoms, {args.seeds} seeds", ON_PHANTOMS[name](sets[-1], args.seeds, args.set)
                )


def measure(console: Console, images: RatedImages, args: argparse.Namespace) -> None:
    """The rows that any images can be asked for."""
    how = f"default configuration{' with ' + ' '.join(args.set) if args.set else ''}"
    parts = {
        "known": (set(CROSSED) & set(args.rows), selector.cross_fitted),
        "kinds": ({"kinds"} & set(args.rows), lambda *rest: selector.never_shown(images, args.families, *rest[2:])),
        "faults": ({"faults"} & set(args.rows), lambda *rest: faults.figures(images, args.seeds, args.set, args.ways)),
    }
    for name, (rows, ask) in parts.items():
        if rows:
            started = time.perf_counter()
            found = ask(images, rows, args.seeds, args.folds, args.set)
            seconds = time.perf_counter() - started
            show(console, f"{name}: {images.name}, {how}, {args.seeds} seeds, {seconds:.0f} s", found)


def ask_the_policy(console: Console, args: argparse.Namespace) -> None:
    """The Policy's rows, on phantoms and on real images."""
    if args.phantoms:
        found = policy.on_phantoms(args.set, None, args.seeds, POLICY_PHANTOMS)
        policy.show(console, f"policy: phantoms, {args.seeds} seeds", *found)
    if args.data is not None:
        outcomes = policy.on_real(args.data, args.set, None, args.seeds, args.folds)
        policy.show(console, f"policy: real images, {args.seeds} seeds", outcomes, None)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    described.add_argument("--data", type=Path, help="real images")
    described.add_argument("--campaign", type=Path, help="of configs/tiny.yaml, for `passing`")
    described.add_argument("--phantoms", type=int, default=60, help="of each kind; 0: none")
    described.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    described.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="of damage, for `kinds`")
    described.add_argument("--ways", nargs="+", choices=WAYS, default=tuple(WAYS), help="left out, for `faults`")
    described.add_argument("--seeds", type=int, default=5)
    described.add_argument("--folds", type=int, default=4)
    described.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="on top of configs/tiny.yaml")
    described.add_argument("--threads", type=int, default=1, help="torch threads")
    return described


if __name__ == "__main__":
    main()
