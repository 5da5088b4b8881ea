"""What a caption states, one attribute at a time, and the same caption with one of them changed.

A caption that differs in one attribute is false of the image and as close to the truth as words can be: a hard
negative. Attributes come from two sources. Lists of words that exclude each other: sides, severities, views, planes,
sequences. And the campaign's own captions: two of one kind of image that differ in a single phrase show what may stand
in its place, whatever the vocabulary (`Brain MRI: cyst in the left hemisphere`, `Brain MRI: oedema in the left
hemisphere`). Ages, sexes and numbers are no attributes: an image does not show them reliably.

It is wrong by assumption that a changed caption does not fit: findings that nobody wrote down may be there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from medsyn.data.modalities import read_prefix

SIDE, SEVERITY, QUALITY, VIEW, PLANE, SEQUENCE = "side", "severity", "quality", "view", "plane", "sequence"
CONTRAST, POSITION, ANATOMY, FINDING = "contrast", "position", "anatomy", "finding"

_MOST_PHRASES = 12  # of a caption that are compared with other captions'; reports have more
_MOST_WAYS = 4  # in which a phrase is written, such as one for either side


class Swap(NamedTuple):
    """A caption with one attribute changed."""

    attribute: str
    caption: str


@dataclass(frozen=True)
class _Family:
    """Words of which only one can be true. Each value is written in the same number of ways, in the same order."""

    attribute: str
    values: tuple[tuple[str, ...], ...]
    before: str = ""  # a regular expression that must match before the word, and
    after: str = ""  # after it
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        words = sorted((word for value in self.values for word in value), key=len, reverse=True)
        # an abbreviation in capitals means nothing else only as it is written
        either = "|".join(word if word.isupper() else f"(?i:{word})" for word in words)
        object.__setattr__(self, "pattern", re.compile(f"(?<![\\w-]){self.before}(?:{either})(?!\\w){self.after}"))

    def place(self, word: str) -> tuple[int, int]:
        """Which value a word is, and in which of its ways it is written."""
        return next(
            (number, value.index(way))
            for number, value in enumerate(self.values)
            for way in (word, word.casefold())
            if way in value
        )

    def found(self, text: str) -> list[int]:
        """The values that a text names, each once."""
        return list(dict.fromkeys(self.place(match[0])[0] for match in self.pattern.finditer(text)))

    def replace(self, text: str, old: int, new: int) -> str:
        """The text with one value in the place of another, wherever it is named."""

        def word(match: re.Match[str]) -> str:
            number, way = self.place(match[0])
            return _in_case_of(match[0], self.values[new][way]) if number == old else match[0]

        return self.pattern.sub(word, text)


def _in_case_of(model: str, word: str) -> str:
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if model[0].isupper() else word


def _words(attribute: str, *words: str, before: str = "", after: str = "") -> _Family:
    return _Family(attribute, tuple((word,) for word in words), before, after)


_SIDES = _Family(SIDE, (("left", "OS", "LUL", "LLL"), ("right", "OD", "RUL", "RLL")))
_QUALITIES = _words(QUALITY, "poor", "acceptable", "good", "excellent", after=r"(?= (?:image )?quality)")  # best last
_FAMILIES = (
    _SIDES,
    _QUALITIES,
    _words(SEVERITY, "mild", "moderate", "severe"),
    _words(SEVERITY, "small", "large"),
    _words(SEVERITY, "minimal", "extensive"),
    _words(SEVERITY, "acute", "chronic"),
    _words(SEVERITY, "early", "intermediate", "late", after="(?=[ -]stage)"),
    _words(SEVERITY, "1", "2", "3", "4", before="(?<=stage |grade )"),
    _words(SEVERITY, "I", "II", "III", "IV", before="(?<=stage |grade )"),
    _words(SEVERITY, "proliferative", "non-proliferative"),
    _words(VIEW, "AP", "PA"),
    _words(VIEW, "anteroposterior", "posteroanterior"),
    _words(VIEW, "frontal", "lateral", after="(?= (?:view|projection|radiograph))"),
    _words(VIEW, "supine", "erect"),
    _words(PLANE, "axial", "coronal", "sagittal"),
    _words(SEQUENCE, "t1-weighted", "t2-weighted"),
    _words(SEQUENCE, "T1", "T2", "FLAIR", after="(?!-weighted)"),
    _words(CONTRAST, "with", "without", after="(?= (?:iv |intravenous )?contrast)"),
    _words(CONTRAST, "contrast-enhanced", "unenhanced"),
    _words(POSITION, "upper", "middle", "lower"),
    _words(POSITION, "superior", "inferior"),
    _words(POSITION, "anterior", "posterior"),
    _words(POSITION, "apical", "basal"),
    _words(POSITION, "central", "peripheral"),
    _words(ANATOMY, "frontal", "parietal", "temporal", "occipital", after="(?= (?:lobe|region|horn))"),
)
_UNSEEN = re.compile(r"\b(?:female|male|woman|man)\b|\d+(?:[.,]\d+)*", re.IGNORECASE)
_PARTS = frozenset(
    {"head", "brain", "skull", "neck", "eye", "retina", "macula", "macular", "chest", "thorax", "lung", "heart"}
    | {"breast", "abdomen", "liver", "kidney", "pelvis", "prostate", "spine", "cervical", "thoracic", "lumbar"}
    | {"shoulder", "elbow", "wrist", "hand", "hip", "knee", "ankle", "foot", "and", "of", "the"}
)
_PHRASE_END = re.compile(r"\s*[,;]\s*|\.\s+")


def other_side(caption: str) -> str | None:
    """The caption with left for right, and right for left; None if it names no side, or both."""
    sides = _SIDES.found(caption)
    return _SIDES.replace(caption, sides[0], 1 - sides[0]) if len(sides) == 1 else None


def at_best_quality(captions: Iterable[str]) -> list[str]:
    """The captions, each with the best image quality that any of them names in place of its own, if it names one."""
    captions = list(captions)
    best = max((value for caption in captions for value in _QUALITIES.found(caption)), default=0)
    changed = []
    for caption in captions:
        for value in _QUALITIES.found(caption):
            caption = _QUALITIES.replace(caption, value, best)
        changed.append(caption)
    return changed


def listed_swaps(caption: str) -> list[Swap]:
    """The caption with every attribute of the word lists changed in turn.

    `X-Ray: mild effusion, AP view` -> (severity, `... moderate effusion ...`), (severity, `... severe effusion ...`),
    (view, `... PA view`). A value that the caption also names elsewhere does not take another's place: with both sides
    named, exchanging them may say the same.
    """
    return _listed(caption, lambda family, value: True)


def _listed(caption: str, is_wanted: Callable[[_Family, int], bool]) -> list[Swap]:
    swaps = []
    for family in _FAMILIES:
        named = family.found(caption)
        free = [value for value in range(len(family.values)) if value not in named and is_wanted(family, value)]
        swaps += [
            Swap(family.attribute, family.replace(caption, old, new))
            for old in named
            for new in free
            if not (family is _SIDES and len(named) > 1)
        ]
    return swaps


class _Phrases(NamedTuple):
    """A caption in pieces: the name of the modality, and phrases with what stands between them."""

    prefix: str
    phrases: tuple[str, ...]
    caption: str

    def with_phrase(self, number: int, phrase: str) -> str:
        """The caption with another phrase."""
        start = len(self.caption) - len(read_prefix(self.caption)[1])
        for earlier in self.phrases[:number]:
            start = self.caption.index(earlier, start) + len(earlier)
        start = self.caption.index(self.phrases[number], start)
        return self.caption[:start] + phrase + self.caption[start + len(self.phrases[number]) :]


def _split(caption: str) -> _Phrases:
    rest = read_prefix(caption)[1]
    phrases = tuple(phrase for phrase in _PHRASE_END.split(rest) if phrase)
    return _Phrases(caption[: len(caption) - len(rest)].casefold(), phrases, caption)


def _frame(phrase: str) -> str:
    """A phrase without the values of listed attributes, numbers and sexes: `mass in the <side> breast`."""
    for family in _FAMILIES:
        phrase = family.pattern.sub(f"<{family.attribute}>", phrase)
    return _UNSEEN.sub("#", phrase).casefold()


class CaptionAttributes:
    """The attributes of a campaign's captions: what may stand in the place of each phrase."""

    def __init__(self, captions: Iterable[str]) -> None:
        """Learn from `captions`, in any order; repeated ones count once."""
        self._written: dict[tuple[str, str], list[str]] = defaultdict(list)  # (prefix, frame) -> its phrases
        self._named: set[tuple[str, _Family, int]] = set()  # (prefix, family, value)
        instead: dict[tuple[str, ...], set[str]] = defaultdict(set)  # the rest of a caption -> frames seen with it
        for caption in sorted(set(captions)):
            said = _split(caption)
            frames = [_frame(phrase) for phrase in said.phrases]
            for frame, phrase in zip(frames, said.phrases, strict=True):
                ways = self._written[said.prefix, frame]
                if phrase not in ways and len(ways) < _MOST_WAYS:
                    ways.append(phrase)
            self._named |= {(said.prefix, family, value) for family in _FAMILIES for value in family.found(caption)}
            for frame, rest in _rests(said.prefix, frames):
                instead[rest].add(frame)
        self._instead: Mapping[tuple[str, ...], set[str]] = instead

    def swaps(self, caption: str) -> list[Swap]:
        """The caption with one attribute changed, every way that is known; in a fixed order, no caption twice.

        `caption` need not be one of those that the attributes were learnt from. Of the lists' words only those come in
        that the captions of this kind use (and both sides): a word that is only ever wrong could be told without a
        look at the image.
        """
        prefix = _split(caption).prefix
        listed = _listed(caption, lambda family, value: family is _SIDES or (prefix, family, value) in self._named)
        found = {swap.caption.casefold(): swap for swap in (*listed, *self._by_phrase(caption))}
        found.pop(caption.casefold(), None)
        return sorted(found.values())

    def _by_phrase(self, caption: str) -> list[Swap]:
        """Every phrase exchanged for those that other captions have in its place, its own side and degree kept."""
        said = _split(caption)
        frames = [_frame(phrase) for phrase in said.phrases]
        swaps = []
        for number, (frame, rest) in enumerate(_rests(said.prefix, frames)):
            for other in sorted(self._instead.get(rest, set()) - set(frames)):
                for way in self._written[said.prefix, other]:
                    phrase = _with_values_of(way, caption)
                    swaps.append(Swap(_kind(frame, other), said.with_phrase(number, phrase)))
        return swaps


def _rests(prefix: str, frames: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each frame of a caption, and the others as a key; of long texts the first ones only."""
    if len(frames) > _MOST_PHRASES:
        return []
    return [(frame, (prefix, *sorted(frames[:n] + frames[n + 1 :]))) for n, frame in enumerate(frames)]


def _with_values_of(phrase: str, caption: str) -> str:
    """A phrase of another caption that states the side, degree, … that this caption states."""
    for family in _FAMILIES:
        named, own = family.found(phrase), family.found(caption)
        if len(named) == len(own) == 1:
            phrase = family.replace(phrase, named[0], own[0])
    return phrase


def _kind(frame: str, other: str) -> str:
    """The attribute that two phrases state which exclude each other."""
    words = set(re.findall(r"\w+", f"{frame} {other}"))
    return ANATOMY if words <= _PARTS else FINDING
