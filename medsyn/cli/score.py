"""medsyn score: what a Selector and a Policy say of images, as a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from medsyn import disk
from medsyn.cli import app
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, InputProblems, Problem
from medsyn.modality_names import MODALITIES, canonical_name
from medsyn.text import counted, did_you_mean

if TYPE_CHECKING:
    from medsyn.scoring.score import ScoredImage


def main(program: str, arguments: Sequence[str]) -> int:
    """Score images that are there, whoever made them: a table of scores, marks and quality metrics."""
    args = _parser(program).parse_args(arguments)
    modality = _modality(args.modality)

    from medsyn.scoring.captions import read_captions
    from medsyn.scoring.find import find_images
    from medsyn.scoring.load import load_scorers
    from medsyn.scoring.score import score_images
    from medsyn.scoring.table import COLUMNS, csv_lines, json_lines, ordered

    if args.sort is not None and args.sort not in COLUMNS:
        known = f"; columns are {', '.join(COLUMNS)}"
        raise InputError("--sort", f"there is no column {args.sort!r}{did_you_mean(args.sort, COLUMNS) or known}")
    problems: list[Problem] = []
    files = find_images(args.images, problems)
    if args.out is not None and disk.absolute(str(args.out)) in {disk.absolute(file) for file in files}:
        raise InputError("--out", f"{args.out} is one of the images")
    if not files:
        raise InputProblems(problems)
    scorers = load_scorers(args.selector, args.policy, args.pretrained_model, args.device)
    captions = read_captions(args.prompts, modality, scorers.card.modalities or MODALITIES, problems)
    told: Counter[str] = Counter()
    with app.progress_bars() as progress:
        images = score_images(scorers, files, captions, problems, partial(progress, "scoring images"))
        images = _counted(images, told)
        if args.sort is not None:
            images = ordered(images, args.sort, args.reverse)
        with _output(args.out) as stream:
            if args.json:
                stream.write('{"images": ')
            for line in json_lines(images) if args.json else csv_lines(images):
                stream.write(line)
            if args.json:
                stream.write(f', "problems": {json.dumps([problem.as_dict() for problem in problems])}}}\n')
    app.show_problems(problems)
    print(_summary(told), file=sys.stderr)
    return EXIT_BAD_INPUT if any(problem.severity == "error" for problem in problems) else EXIT_DONE


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    text = "PNG, JPEG, DICOM or NIfTI files, folders of them, or patterns such as 'scans/**/*.png'"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=text)
    parser.add_argument("--selector", required=True, type=Path, metavar="DIR", help="a trained Selector")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="a trained Policy, which needs prompts")
    text = "what the images show: a text, or a data set or ratings (CSV) that names them (images of medsyn know it)"
    parser.add_argument("--prompts", metavar="FILE|TEXT", help=text)
    text = "of images of which neither the table nor their file says it"
    parser.add_argument("--modality", metavar="NAME", help=text)
    text = "model whose text encoder the Policy was trained with (that of the Policy's campaign)"
    parser.add_argument("--pretrained-model", metavar="MODEL", help=text)
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto (the default), cpu or cuda:N")
    parser.add_argument("--sort", metavar="COLUMN", help="order of the rows: lowest first (as the images were given)")
    parser.add_argument("--reverse", action="store_true", help="highest first")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the table is written (standard output)")
    parser.add_argument("--json", action="store_true", help="JSON instead of CSV")
    return parser


def _modality(written: str | None) -> str | None:
    try:
        return None if written is None else canonical_name(written)
    except ValueError as error:
        raise InputError("--modality", f"{written!r:.100} {error}") from None


def _counted(images: Iterable[ScoredImage], told: Counter[str]) -> Iterator[ScoredImage]:
    """The images, counted for the summary as they pass."""
    for image in images:
        told["images"] += 1
        told["judged"] += image.passes is not None
        told["passing"] += bool(image.passes)
        told["unfamiliar"] += image.unfamiliar
        yield image


def _summary(told: Counter[str]) -> str:
    said = [f"{counted(told['images'], 'image')} scored"]
    if told["judged"]:
        said.append(f"{told['passing']} of {told['judged']} reach the Selector's threshold")
    return ", ".join([*said, f"{told['unfamiliar']} unfamiliar"])


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    """Where the table goes: a file that appears whole, or standard output."""
    if path is None:
        yield sys.stdout
        return
    disk.make_directory(path.parent)
    temporary = disk.temporary_sibling(path)
    try:
        with disk.writing(path), temporary.open("w", encoding="utf-8") as stream:
            yield stream
        disk.publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
