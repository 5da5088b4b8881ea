"""medsyn copies: are there copies of real images among synthetic ones?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.cli import app
from medsyn.errors import EXIT_DONE, InputError, InputProblems, Problem
from medsyn.modality_names import canonical_name
from medsyn.text import counted

if TYPE_CHECKING:
    from medsyn.evaluation.memorization.search import Picture


def main(program: str, arguments: Sequence[str]) -> int:
    """Search synthetic images for copies of real ones; print what was found, and what would have been."""
    args = _parser(program).parse_args(arguments)
    for name in ("honest", "planted"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}", f"must be at least 1, got {getattr(args, name)}")
    try:
        modality = None if args.modality is None else canonical_name(args.modality)
    except ValueError as error:
        raise InputError("--modality", f"{args.modality!r:.100} {error}") from None

    from medsyn.evaluation.memorization import results
    from medsyn.evaluation.memorization.assess import Effort, assess
    from medsyn.evaluation.memorization.read import real_pictures, synthetic_pictures
    from medsyn.scoring.find import find_images

    problems: list[Problem] = []
    files = find_images(args.images, problems)
    if not files:
        raise InputProblems(problems)
    with app.progress_bars() as progress:
        trained, controls = (
            list(real_pictures(tables, args.patient_column, partial(progress, f"reading {what}"), problems))
            for tables, what in ((args.real, "real images"), (args.controls, "controls"))
        )
        if both := {picture.patient for picture in trained} & {picture.patient for picture in controls}:
            reason = f"{counted(len(both), 'patient')} of --real, too: controls are patients that were never trained on"
            raise InputError("--controls", reason)
        synthetic = list(synthetic_pictures(files, modality, partial(progress, "reading synthetic images"), problems))
        if errors := [problem for problem in problems if problem.severity == "error"]:
            raise InputProblems(errors)
        effort = Effort(args.honest, args.planted)
        tick = _counting(partial(progress, "comparing images"), effort.looks(trained, controls, synthetic))
        found = assess(trained, controls, synthetic, args.seed, effort, tick)
    app.show_problems(problems)
    if args.out is not None:
        results.write(args.out, found, _by_name(*trained, *controls), _by_name(*synthetic))
    print("\n".join(results.lines(found)))
    return EXIT_DONE


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    text = "synthetic images: PNG, JPEG or DICOM files, folders of them, or patterns"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=text)
    text = "data set (CSV) that the model was trained on; may be repeated"
    parser.add_argument("--real", type=Path, action="append", required=True, metavar="TABLE", help=text)
    text = "data set of patients that it was not trained on; may be repeated"
    parser.add_argument("--controls", type=Path, action="append", default=[], metavar="TABLE", help=text)
    parser.add_argument("--patient-column", metavar="NAME", help="header of the patients' column (recognised)")
    parser.add_argument("--modality", metavar="NAME", help="of synthetic images whose file does not say it")
    text = "real images of each modality that set the threshold (200)"
    parser.add_argument("--honest", type=int, default=200, metavar="N", help=text)
    text = "copies of each kind that are planted in each modality, to see which are found (20)"
    parser.add_argument("--planted", type=int, default=20, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="chooses both (0)")
    text = "folder for copies.json, exclude.csv and pictures of what was found"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    return parser


def _counting(tell: Callable[[int, int], None], total: int) -> Callable[[], None]:
    """Count images as they are looked at."""
    done = count(1)
    return lambda: tell(min(next(done), total), total)


def _by_name(*pictures: Picture) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures}
