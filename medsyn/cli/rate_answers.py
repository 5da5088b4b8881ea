"""`medsyn rate import` and `medsyn rate report`: what experts answered, as tables, and how far to trust it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medsyn import disk
from medsyn.cli import app
from medsyn.cli.invocation import command
from medsyn.errors import EXIT_DONE, InputError, InputProblems, Problem
from medsyn.text import counted

if TYPE_CHECKING:
    from medsyn.rating.report import Agreement, RaterFigures
    from medsyn.rating.take import Taken
    from medsyn.stage import CampaignDirectory


def add_import(parser: argparse.ArgumentParser) -> None:
    """The arguments of `rate import`."""
    text = "files that the page has saved, or exports of Label Studio (CSV, JSON)"
    parser.add_argument("answers", nargs="+", type=Path, metavar="ANSWERS", help=text)
    text = "key of the page's set, written by `rate export`; may be repeated"
    parser.add_argument("--key", action="append", type=Path, default=[], metavar="FILE", help=text)
    text = "of exports of Label Studio: the folder that the images were uploaded from"
    parser.add_argument("--images", type=Path, metavar="DIR", help=text)
    text = "of exports of Label Studio: level of an annotator, as in annotator-1=3 (1 for all others); may be repeated"
    parser.add_argument("--expert-level", action="append", default=[], metavar="RATER=LEVEL", help=text)
    where = parser.add_mutually_exclusive_group(required=True)
    text = "the ratings' table to write; pairs.csv and sessions.parquet are written beside it"
    where.add_argument("--out", type=Path, metavar="FILE", help=text)
    text = "write them into the folder ratings/ of the campaign whose images were rated: what campaign.gate waits for"
    where.add_argument("--campaign", type=Path, metavar="DIR", help=text)
    text = "data directory that image paths are relative to (that of --out)"
    parser.add_argument("--root", type=Path, metavar="DIR", help=text)
    parser.add_argument("--with-decoys", action="store_true", help="keep the ratings of the real images mixed in")


def take(args: argparse.Namespace) -> int:
    """Write tables from answers."""
    if args.campaign is not None:
        return _take_of_campaign(args)
    if args.out.suffix.lower() != ".csv":
        raise InputProblems([Problem("--out", f"must be the name of a .csv file, got {str(args.out)!r}")])
    app.require_no_campaign(args.out.absolute().parent, "--out")

    from medsyn.rating.label_studio import is_export
    from medsyn.rating.take import take as take_answers
    from medsyn.rating.take import take_exports

    foreign = [path for path in args.answers if is_export(path)]
    if foreign and len(foreign) < len(args.answers):
        raise InputError(foreign[0], "is an export of Label Studio, and others are of the page: import them apart")
    if foreign:
        if args.images is None:
            reason = "is an export of Label Studio: name the folder that its images were uploaded from with --images"
            raise InputError(foreign[0], reason)
        taken = take_exports(args.answers, args.images, args.out, dict(map(_level, args.expert_level)), args.root)
    else:
        if not args.key:
            raise InputError("--key", "is needed: the file SET.key.json that `rate export` wrote beside the page")
        taken = take_answers(args.answers, args.key, args.out, args.root, args.with_decoys)
    _show(args.out, taken)
    return EXIT_DONE


def _show(out: Path, taken: Taken) -> None:
    app.show_problems(taken.warnings)
    of = f"{counted(taken.answers, 'answer')} of {counted(taken.raters, 'rater')}"
    print(f"{out}: {counted(taken.ratings, 'rating')} and {counted(taken.pairs, 'pair')} from {of}")


def _take_of_campaign(args: argparse.Namespace) -> int:
    """Write the tables of ratings of a campaign's own images into its folder for them."""
    from medsyn import own_ratings
    from medsyn.campaign import guards
    from medsyn.campaign.state import locks
    from medsyn.rating.take import take as take_answers

    directory = app.open_campaign(argparse.Namespace(config=str(args.campaign), overrides=[])).directory
    guards.require_own(directory)
    if problems := list(_not_of_campaign(args, directory)):
        raise InputProblems(problems)
    if locks.is_held(directory.attempts("evaluate", "all")):
        raise InputError(directory.root, "its report is being made: import the answers when that is done")
    taken = take_answers(args.answers, args.key, disk.make_directory(directory.ratings.parent) / directory.ratings.name)
    _show(directory.ratings, taken)
    if not taken.ratings:
        raise InputError(directory.ratings, "there is no rating among the answers: the campaign goes on waiting")
    own_ratings.note(directory)
    print(f"next      for a report with them: {command('resume', [str(args.campaign)])}")
    return EXIT_DONE


def _not_of_campaign(args: argparse.Namespace, directory: CampaignDirectory) -> Iterator[Problem]:
    """Why answers are not about the campaign's own images."""
    from medsyn.rating.formats import read_key
    from medsyn.rating.label_studio import is_export

    for key, value in (("--root", args.root), ("--images", args.images), ("--with-decoys", args.with_decoys)):
        if value:
            yield Problem(key, "is for --out: with --campaign the tables are about the campaign's own images only")
    if not args.key:
        yield Problem("--key", "is needed: the file SET.key.json that `rate export` wrote beside the page")
    for path in filter(is_export, args.answers):
        reason = "is an export of Label Studio, which does not say what its images are: import it with --out"
        yield Problem(str(path), reason)
    made = (directory.root / "work" / "generate").resolve()
    for path in args.key:
        files = (Path(image.file) for image in read_key(path).images.values() if image.kind == "generated")
        if foreign := next((file for file in files if not file.resolve().is_relative_to(made)), None):
            yield Problem(str(path), f"is of other images than those of {directory.root}, such as {foreign}: use --out")


def _level(written: str) -> tuple[str, int]:
    rater, _, level = written.rpartition("=")
    if not rater or level not in ("1", "2", "3"):
        raise InputError("--expert-level", f"{written!r} is not of the form annotator-1=3, with a level of 1 to 3")
    return rater, int(level)


def add_report(parser: argparse.ArgumentParser) -> None:
    """The arguments of `rate report`."""
    text = "what an import has written: the ratings' table, its sessions.parquet, or their folder"
    parser.add_argument("ratings", type=Path, metavar="RATINGS", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


def report(args: argparse.Namespace) -> int:
    """Print how far ratings can be trusted."""
    from medsyn.rating.report import assess
    from medsyn.rating.sessions import read_sessions

    found = assess(read_sessions(args.ratings))
    if args.json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return EXIT_DONE
    console = Console()
    for line in _of_raters(found.raters):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(_between(found))
    for line in _of_all(found):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return EXIT_DONE


def _of_raters(raters: Iterable[RaterFigures]) -> Iterator[str]:
    from medsyn.rating.report import show

    for one in raters:
        rated = " / ".join(f"{number:,}" for number in one.ratings.values())
        yield (
            f"{one.rater}: {counted(one.cases, 'case')} ({rated} rated 1 / 2 / 3, {one.not_sure:,} not sure), "
            f"{counted(one.pairs, 'pair')}" + (f", {one.seconds:.1f} s a case" if one.cases else "")
        )
        if one.cases == 0:
            continue
        yield f"  repeats (n={one.repeat_kappa.n}): kappa {show(one.repeat_kappa)}, ICC {show(one.repeat_icc)}"
        yield f"  real images told from generated ones (n={one.decoy_d.n}): d' {show(one.decoy_d)}"
        yield f"  drift of the rating from the first case to the last: {show(one.drift)}"


def _between(found: Agreement) -> Table:
    from medsyn.rating.report import show

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("between raters")
    for name in ("n", "alpha", "AC2", "pairs: same choice"):
        table.add_column(name, justify="right")
    for name, between in ({"all": found.overall} | found.by_modality).items():
        estimates = (between.alpha, between.ac2, between.pair_agreement)
        table.add_row(escape(name), f"{between.images:,}", *map(show, estimates))
    return table


def _of_all(found: Agreement) -> Iterator[str]:
    for names, kappa in found.overall.kappas.items():
        yield f"{names}: kappa {'-' if math.isnan(kappa) else f'{kappa:.2f}'}"
    yield "n: images of two raters or more; alpha: Krippendorff's, ordinal; AC2: Gwet's; kappa: quadratic weights"
    yield "[ ]: 95 %, bootstrap over images"
    yield from (f"warning: {warning}" for warning in found.warnings)
