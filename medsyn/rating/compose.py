"""From images to a set: which are repeated, which are compared, what everything is called, and the key to it.

Names are opaque: they depend on the images' own files, which no rater has. What a rater could use to tell one kind of
image from another (place in the file, size, depth, a text in a PNG file) is the same for all.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import medsyn
from medsyn.modality_names import base_modality
from medsyn.rating import pixels
from medsyn.rating.checklists import CHECKLISTS
from medsyn.rating.formats import (
    KEY_FORMAT,
    SECTIONS,
    SET_FORMAT,
    Case,
    CaseKey,
    Checklist,
    Example,
    Origin,
    Pair,
    RatingSet,
    SetKey,
    ShownImage,
)
from medsyn.rating.pixels import Levels
from medsyn.rating.sources import Source

IDLE_SECONDS = 30
BREAK_MINUTES = 20


@dataclass(frozen=True)
class Picked:
    """An image of the set, read."""

    source: Source
    levels: Levels


@dataclass(frozen=True)
class Content:
    """What a set is made of."""

    rated: Sequence[Picked]
    decoys: Sequence[Picked]
    repeats: int  # of all of these
    pairs: Sequence[tuple[int, int]]  # of places in `rated`, and behind it in `compared`
    examples: Sequence[tuple[int, Picked]] = ()  # rating, and what shows it
    compared: Sequence[Picked] = ()  # only in pairs


@dataclass(frozen=True)
class Made:
    """A set, its key, and the PNG files of its images by name."""

    set: RatingSet
    key: SetKey
    files: dict[str, bytes] = field(repr=False)


def count_mixed(images: int, decoys: float, repeats: float) -> tuple[int, int]:
    """How many decoys and repeats go with so many images, that they are at least these shares of all cases."""
    total = math.ceil(images / (1 - decoys - repeats) - 1e-9)
    while images + (mixed := _ceil(decoys * total)) + (again := _ceil(repeats * total)) > total:
        total += 1
    return mixed, again


def _ceil(number: float) -> int:
    return math.ceil(number - 1e-9)


def choose_pairs(sources: Sequence[Source], most: int, of: int) -> list[tuple[int, int]]:
    """Pairs of places in `sources` to compare: of one prompt as far as there are such, else of one modality.

    No image is in two pairs before all of its modality have been in one.
    """
    places = sorted(range(len(sources)), key=lambda place: sources[place].rank(of, "pair"))
    chosen = list(dict.fromkeys([*_couples(sources, places, True), *_couples(sources, places, False)]))
    return chosen[:most]


def _couples(sources: Sequence[Source], places: Iterable[int], same_prompt: bool) -> Iterator[tuple[int, int]]:
    """Neighbours among those that are alike, the modalities in turn."""
    alike: dict[tuple[str, str], list[int]] = {}
    for place in places:
        key = sources[place].modality, sources[place].prompt if same_prompt else ""
        alike.setdefault(key, []).append(place)
    step = 2 if same_prompt else 1
    runs = [[(one[i], one[i + 1]) for i in range(0, len(one) - 1, step)] for one in alike.values()]
    for number in range(max(map(len, runs), default=0)):
        yield from ((min(run[number]), max(run[number])) for run in runs if number < len(run))


def compose(content: Content, of: int, title: str, with_captions: bool = True) -> Made:
    """The set and its key; the same content and seed give the same set.

    Args:
        content: the images.
        of: the seed.
        title: what the page is called.
        with_captions: whether raters see prompts and captions.
    """
    alone = [*content.rated, *content.decoys, *(example for _, example in content.examples)]
    everything = [*alone, *content.compared]
    in_pairs = [*range(len(content.rated)), *range(len(alone), len(everything))]
    files = [pixels.encode(one.levels) for one in everything]
    origins = [one.source.origin(one.levels.is_marked) for one in everything]
    names = _Names(of, origins)
    images = [names.new("image", place) for place in range(len(everything))]
    singles = len(content.rated) + len(content.decoys)
    sections = [*_dealt(len(content.rated), names), *_dealt(len(content.decoys), names)]
    cases: dict[str, tuple[Case, CaseKey]] = {}

    def add(place: int, section: int, repeat_of: str | None) -> str:
        name, source = names.new("case", place, repeat_of is not None), everything[place].source
        caption = source.prompt if with_captions else ""
        case = Case(id=name, image=images[place], section=section % SECTIONS, caption=caption)
        cases[name] = case, CaseKey(image=images[place], decoy=place >= len(content.rated), repeat_of=repeat_of)
        return name

    first = [add(place, sections[place], None) for place in range(singles)]
    for place in names.shuffled("repeat", singles)[: content.repeats]:
        add(place, sections[place] + SECTIONS // 2, first[place])
    pairs = {
        names.new("pair", number): (number, images[left], images[right], _common_prompt(everything, left, right))
        for number, (left, right) in enumerate((in_pairs[one], in_pairs[other]) for one, other in content.pairs)
    }
    shown = {
        image: pixels.describe(one.levels, one.source.modality, png)
        for image, one, png in zip(images, everything, files, strict=True)
    }
    made = RatingSet(
        format=SET_FORMAT,
        version=medsyn.__version__,
        title=title,
        seed=names.new("order"),
        sections=SECTIONS,
        idle_seconds=IDLE_SECONDS,
        break_minutes=BREAK_MINUTES,
        images=dict(sorted(shown.items())),
        cases=tuple(cases[name][0] for name in sorted(cases)),
        pairs=tuple(
            Pair(id=name, images=(left, right), section=number % SECTIONS, caption=prompt if with_captions else "")
            for name, (number, left, right, prompt) in sorted(pairs.items())
        ),
        examples=_examples(content, images[singles : len(alone)]),
        checklists=_checklists(shown.values()),
    )
    key = SetKey(
        format=KEY_FORMAT,
        id=made.id,
        set=made.hash,
        version=made.version,
        images=dict(sorted(zip(images, origins, strict=True))),
        cases={name: cases[name][1] for name in sorted(cases)},
        pairs={name: (left, right) for name, (_, left, right, _) in sorted(pairs.items())},
    )
    return Made(made, key, dict(sorted(zip(images, files, strict=True))))


def _common_prompt(shown: Sequence[Picked], left: int, right: int) -> str:
    """The prompt of both images of a pair; none if they have two, since one's would speak against the other."""
    prompts = {shown[place].source.prompt for place in (left, right)}
    return prompts.pop() if len(prompts) == 1 else ""


class _Names:
    """Opaque names, and other things that nobody can work out who does not have the images' own files."""

    def __init__(self, of: int, origins: Sequence[Origin]) -> None:
        self._salt = f"{of}:{','.join(origin.sha256 for origin in origins)}".encode()

    def new(self, *what: str | int) -> str:
        digest = hashlib.blake2b(repr(what).encode(), digest_size=32, key=hashlib.sha256(self._salt).digest()).digest()
        return base64.b32encode(digest).decode().lower()[:12]

    def shuffled(self, what: str, count: int) -> list[int]:
        return sorted(range(count), key=lambda place: self.new(what, place))


def _dealt(count: int, names: _Names) -> list[int]:
    """The section of each of so many cases, as many in each section."""
    sections = [0] * count
    for number, place in enumerate(names.shuffled(f"section of {count}", count)):
        sections[place] = number % SECTIONS
    return sections


def _examples(content: Content, images: Sequence[str]) -> tuple[Example, ...]:
    found = zip(content.examples, images, strict=True)
    return tuple(Example(modality=one.source.modality, rating=rating, image=name) for (rating, one), name in found)


def _checklists(shown: Iterable[ShownImage]) -> dict[str, Checklist]:
    present = {base_modality(image.modality) for image in shown}
    return {modality: checklist for modality, checklist in CHECKLISTS.items() if modality in present}
