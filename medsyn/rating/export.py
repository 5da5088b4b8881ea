"""From sources to files: draws images, reads them, mixes in real ones and repeats, writes the page and its key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsyn import disk
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.rating import pixels
from medsyn.rating.compose import Content, Made, Picked, choose_pairs, compose, count_mixed
from medsyn.rating.page import render
from medsyn.rating.sources import Source, draw
from medsyn.text import counted

LARGE_BYTES = 60_000_000  # from here on a page opens slowly, and mail servers refuse it
SPARE = 1.5  # so many times the decoys that are needed are drawn, as some files may be unreadable

Progress = Callable[[int, int], None]  # images read, of how many


@dataclass(frozen=True)
class Wishes:
    """What a set is to be like."""

    images: int = 200  # of the source
    decoys: float = 0.1  # real images, as a share of all cases
    repeats: float = 0.1  # as a share of all cases
    pairs: int | None = None  # a fifth of the images unless given
    seed: int = 0
    title: str = "Rating of images"
    with_captions: bool = True

    def most_pairs(self, images: int) -> int:
        """How many pairs go with so many images."""
        return images // 5 if self.pairs is None else self.pairs


@dataclass(frozen=True)
class Choice:
    """Which of the source's images are shown."""

    rated: Sequence[Source]
    pairs: Sequence[tuple[int, int]]  # of places in `rated`, and behind it in `compared`
    compared: Sequence[Source] = ()  # only in pairs


def at_random(sources: Iterable[Source], wishes: Wishes) -> Choice:
    """As evenly from all kinds of images as these allow."""
    drawn = draw(sources, wishes.images, wishes.seed)
    return Choice(drawn, choose_pairs(drawn, wishes.most_pairs(len(drawn)), wishes.seed))


@dataclass(frozen=True)
class Exported:
    """What was written."""

    page: Path
    key: Path
    made: Made
    size: int  # of the page, bytes
    warnings: list[Problem] = field(default_factory=list)


def key_path(page: Path) -> Path:
    """Where a page's key is: `set.html` -> `set.key.json`."""
    return page.with_name(f"{page.stem}.key.json")


def export(
    sources: Iterable[Source],
    real: Iterable[Source],
    examples: Sequence[tuple[int, Source]],
    page: Path,
    wishes: Wishes,
    progress: Progress = lambda done, total: None,
    choose: Callable[[Iterable[Source], Wishes], Choice] = at_random,
) -> Exported:
    """Write a page and its key.

    Args:
        sources: images to rate; may be a stream.
        real: images to take decoys from.
        examples: (rating, image that shows what it means).
        page: the file to write; the key is written beside it.
        wishes: what the set is to be like.
        progress: is told how many images have been read.
        choose: says which of the sources are shown.

    Raises:
        InputError: there is no image, or another set is there already.
        InputProblems: images cannot be read.
    """
    choice = choose(sources, wishes)
    drawn = [*choice.rated, *choice.compared]
    if not drawn:
        raise InputError(page, "would have no cases: there is no image to rate")
    decoys, repeats = count_mixed(len(choice.rated), wishes.decoys, wishes.repeats)
    taken = {source.file for source in drawn}
    modalities = {source.modality for source in drawn}
    spare = draw(
        (source for source in real if source.modality in modalities and source.file not in taken),
        int(decoys * SPARE) + 2,
        wishes.seed,
        "decoy",
    )
    total = len(drawn) + decoys + len(examples)
    read = _all_read(drawn, lambda done: progress(done, total))
    sides = _sides(read)
    mixed, warnings = _first_readable(spare, decoys, sides)
    shown, of_examples = _first_readable([source for _, source in examples], len(examples), sides)
    warnings += of_examples
    ratings = {id(source): rating for rating, source in examples}
    if len(mixed) < decoys:
        reason = f"has {counted(len(mixed), 'real image')} of {decoys} that {wishes.decoys:.0%} would be"
        warnings.append(Problem(str(page), f"{reason}: how well experts tell them cannot be said", severity="warning"))
    content = Content(
        rated=read[: len(choice.rated)],
        decoys=mixed,
        repeats=repeats,
        pairs=choice.pairs,
        examples=[(ratings[id(one.source)], one) for one in shown],
        compared=read[len(choice.rated) :],
    )
    progress(total, total)
    made = compose(content, wishes.seed, wishes.title, wishes.with_captions)
    size = _write(page, made)
    if size > LARGE_BYTES:
        reason = f"has {size / 1e6:.0f} MB: it opens slowly, and mail servers refuse it; --images makes it smaller"
        warnings.append(Problem(str(page), reason, severity="warning"))
    return Exported(page, key_path(page), made, size, warnings)


def _read(source: Source) -> Picked:
    deep_kept = pixels.of_generated if source.facts else pixels.of_file
    return Picked(source, deep_kept(source))


def _all_read(sources: Sequence[Source], progress: Callable[[int], None]) -> list[Picked]:
    picked, problems = [], []
    for number, source in enumerate(sources):
        progress(number)
        try:
            picked.append(_read(source))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputProblems(problems)
    return picked


def _sides(rated: Sequence[Picked]) -> dict[str, int | None]:
    """By modality the side of its images, if they are all squares of one size and of 8 bits, as generated ones are."""
    found: dict[str, int | None] = {}
    for one in rated:
        height, width = one.levels.values.shape[:2]
        side = height if height == width and one.levels.values.dtype.itemsize == 1 else None
        modality = one.source.modality
        found[modality] = side if found.get(modality, side) == side else None
    return found


def _first_readable(
    sources: Sequence[Source], most: int, sides: dict[str, int | None]
) -> tuple[list[Picked], list[Problem]]:
    """The first images that can be read, and warnings about those that cannot."""
    picked: list[Picked] = []
    warnings: list[Problem] = []
    for source in sources:
        if len(picked) == most:
            break
        side = sides.get(source.modality)
        try:
            levels = pixels.of_file(source) if side is None else pixels.like_generated(source, side)
        except InputError as error:
            one = error.problem
            warnings.append(Problem(one.source, f"{one.reason}; it is left out", one.row, one.key, "warning"))
            continue
        picked.append(Picked(source, levels))
    return picked, warnings


def _write(page: Path, made: Made) -> int:
    """The key first: a page without its key would be lost work."""
    key = key_path(page)
    if key.exists() or page.exists():
        _require_same(page, key, made)
    disk.write_json(key, made.key.model_dump(mode="json"))
    content = "".join(render(made.set, made.files))
    disk.write_atomic(page, content)
    return len(content.encode())


def _require_same(page: Path, key: Path, made: Made) -> None:
    """Raise InputError if another set is there: without its key its answers would be worth nothing."""
    try:
        there = disk.read_json(key)["set"] if key.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        there = None
    if there != made.set.hash:
        what = key if key.exists() else page
        raise InputError(what, "is there already, of another set: choose another name for --out, or move it away")
