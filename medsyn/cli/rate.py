"""`medsyn rate`: the page that experts open, and what comes back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.cli import app, rate_answers
from medsyn.errors import EXIT_DONE, InputProblems, Problem
from medsyn.modality_names import canonical_modality, not_a_modality
from medsyn.text import counted

if TYPE_CHECKING:
    from medsyn.config import Config
    from medsyn.rating.export import Choice, Exported, Wishes
    from medsyn.rating.sources import Source

_MOST_SHARE = 0.4  # of decoys, and of repeats
_MOST_IMAGES = 5000
_CONFIGURATIONS = (".yaml", ".yml")


def main(program: str, arguments: Sequence[str]) -> int:
    """Ratings by experts: a page that they open, their answers as tables, how far to trust them, what to ask next."""
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_export(commands.add_parser("export", help="write one HTML file with images to rate, and its key"))
    add_next = commands.add_parser("next", help="write the page with the images whose answers would say most")
    text = "what an import has written so far: the ratings' table, its sessions.parquet, or their folder"
    add_next.add_argument("--answers", type=Path, required=True, metavar="RATINGS", help=text)
    _add_export(add_next)
    rate_answers.add_import(commands.add_parser("import", help="write the tables of ratings and pairs from answers"))
    rate_answers.add_report(commands.add_parser("report", help="say how far raters agree, and with themselves"))
    args = parser.parse_args(arguments)
    run = {"export": _export, "next": _export, "import": rate_answers.take, "report": rate_answers.report}
    return run[args.command](args)


def _add_export(parser: argparse.ArgumentParser) -> None:
    text = "a campaign (its directory or configuration), a folder of images, or a table of images"
    parser.add_argument("source", metavar="CAMPAIGN|FOLDER|TABLE", type=Path, help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .html file")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="at most so many of the source (200)")
    text = "data set to take real images from, which are mixed in; of a campaign its own unless given"
    parser.add_argument("--real", type=Path, metavar="TABLE", help=text)
    parser.add_argument("--decoys", type=float, default=0.1, metavar="SHARE", help="real ones among all cases (0.1)")
    parser.add_argument("--repeats", type=float, default=0.1, metavar="SHARE", help="cases that are shown twice (0.1)")
    parser.add_argument("--pairs", type=int, metavar="N", help="pairs to compare (a fifth of the images)")
    text = "ratings whose images show what 1, 2 and 3 mean; of a campaign its own unless given"
    parser.add_argument("--examples", type=Path, metavar="TABLE", help=text)
    parser.add_argument("--root", type=Path, metavar="DIR", help="what files of TABLE are relative to (its own folder)")
    parser.add_argument("--modality", metavar="NAME", help="of images of FOLDER that do not say it themselves")
    parser.add_argument("--no-captions", action="store_true", help="show raters neither prompts nor captions")
    parser.add_argument("--title", default="Rating of images", help="what the page is called")
    parser.add_argument("--seed", type=int, default=0, help="decides which images are taken, and the order (0)")


def _export(args: argparse.Namespace) -> int:
    if problems := list(_wrong_arguments(args)):
        raise InputProblems(problems)
    config = _campaign(args.source)
    app.require_no_campaign(args.out.absolute().parent, "--out")

    from medsyn.rating.export import Wishes, export

    wishes = Wishes(args.images, args.decoys, args.repeats, args.pairs, args.seed, args.title, not args.no_captions)
    sources, real, examples = _sources(args, config), _real(args, config), _examples(args, config)
    with app.progress_bars() as progress:
        report = partial(progress, "reading images")
        exported = export(sources, real, examples, args.out, wishes, report, _choose(args))
    app.show_problems([*exported.warnings, *_advice(args, exported)])
    _show(exported)
    return EXIT_DONE


def _choose(args: argparse.Namespace) -> Callable[[Iterable[Source], Wishes], Choice]:
    """How the images are chosen: at random, or by what they would say beside the answers so far."""
    if args.command == "export":
        from medsyn.rating.export import at_random

        return at_random
    from medsyn.rating.next_set import by_information
    from medsyn.rating.sessions import read_sessions

    return partial(by_information, sessions=read_sessions(args.answers))


def _wrong_arguments(args: argparse.Namespace) -> Iterator[Problem]:
    if not 1 <= args.images <= _MOST_IMAGES:
        yield Problem("--images", f"must be 1 to {_MOST_IMAGES}, got {args.images}")
    for name in ("decoys", "repeats"):
        if not 0 <= getattr(args, name) <= _MOST_SHARE:
            yield Problem(f"--{name}", f"must be 0 to {_MOST_SHARE}, got {getattr(args, name):g}")
    if args.pairs is not None and args.pairs < 0:
        yield Problem("--pairs", f"must be 0 or more, got {args.pairs}")
    if args.out.suffix.lower() not in (".html", ".htm"):
        yield Problem("--out", f"must be the name of an .html file, got {str(args.out)!r}")
    if args.modality is not None and canonical_modality(args.modality) is None:
        yield Problem("--modality", f"{args.modality!r} {not_a_modality(args.modality)}")
    if not args.source.exists():
        yield Problem(str(args.source), "does not exist: give a campaign, a folder of images, or a table")


def _campaign(source: Path) -> Config | None:
    """The configuration of the campaign that a source is, if it is one."""
    if source.suffix.lower() in _CONFIGURATIONS or (source.is_dir() and (source / "campaign.json").exists()):
        named = argparse.Namespace(config=str(source), overrides=[])
    else:
        return None
    return app.open_campaign(named).config


def _sources(args: argparse.Namespace, config: Config | None) -> Iterator[Source]:
    from medsyn.rating import sources
    from medsyn.stage import CampaignDirectory

    if config is not None:
        yield from sources.of_campaign(config, CampaignDirectory(config.campaign.path))
    elif args.source.is_dir():
        yield from sources.of_folder(args.source, canonical_modality(args.modality or ""))
    else:
        yield from sources.of_table(args.source, args.root)


def _real(args: argparse.Namespace, config: Config | None) -> list[Source]:
    from medsyn.data.tables.read import dataset_of
    from medsyn.rating import sources

    if args.decoys == 0:
        return []
    if args.real is not None:
        return sources.of_table(args.real, is_generated=False)
    return sources.of_rows(dataset_of(config.data).rows) if config is not None else []


def _examples(args: argparse.Namespace, config: Config | None) -> list[tuple[int, Source]]:
    """An image for each rating and modality: of those with one rating only, the first of the table."""
    from medsyn.data.tables.read import RatingRow, ratings_of, read_ratings
    from medsyn.rating.sources import Source

    if args.examples is not None:
        rows = read_ratings(args.examples).require(strict=True)
    elif config is not None and config.data.ratings_file:
        rows = ratings_of(config.data).rows
    else:
        return []

    def by_image(row: RatingRow) -> tuple[str, int]:
        return row.file, row.volume or 0

    found: dict[tuple[str, int], Source] = {}
    for _, group in groupby(sorted(rows, key=by_image), by_image):
        first, *others = group
        if all(other.rating == first.rating for other in others):
            source = Source(first.path, first.modality, first.prompt, None, first.volume)
            found.setdefault((first.modality, first.rating), source)
    return [(rating, source) for (_, rating), source in sorted(found.items(), key=lambda one: one[0])]


def _advice(args: argparse.Namespace, exported: Exported) -> Iterator[Problem]:
    """What would make the set worth more."""
    if not exported.made.set.examples:
        reason = "has no examples of 1, 2 and 3: name rated images with --examples, and experts agree more"
        yield Problem(str(exported.page), reason, severity="warning")
    if args.decoys == 0 or args.repeats == 0:
        missing = " and ".join(name for name in ("decoys", "repeats") if getattr(args, name) == 0)
        reason = f"has no {missing}: how far the ratings can be trusted will not be known"
        yield Problem(str(exported.page), reason, severity="warning")


def _show(exported: Exported) -> None:
    cases, pairs = exported.made.key.cases.values(), exported.made.set.pairs
    decoys = sum(case.decoy and case.repeat_of is None for case in cases)
    repeats = sum(case.repeat_of is not None for case in cases)
    rated = counted(len(cases) - decoys - repeats, "image")
    print(
        f"{exported.page}: {rated}, {counted(decoys, 'real image')} and {counted(repeats, 'repeat')} mixed in, "
        f"{counted(len(pairs), 'pair')}, {exported.size / 1e6:.1f} MB; any browser opens it, without a network"
    )
    print(f"{exported.key}: what each image is; keep it for the import, and do not give it to raters")
