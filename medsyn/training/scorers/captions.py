"""What the Policy learns from besides ratings: captioned images, and texts that are nearly true of an image.

A ratings table has one prompt per image, and its other prompts mostly name something else altogether. A Policy that
learns from those alone tells kinds of images apart and no more. Texts that differ in one attribute from one that is
true (`medsyn.data.prompts.attributes`), and mirrored images under texts that name a side, make it look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsyn.data.prompts.attributes import CaptionAttributes, Swap, other_side
from medsyn.seeds import seed

MOST_PER_ATTRIBUTE = 3  # near misses of a text that are kept: each is a pass of the text encoder
NEAR = 2  # near misses that an image is shown under at a time, of different attributes, and
ELSEWHERE = 1  # texts of other images
SAME_MODALITY_ODDS = 0.5  # how often a text of another image is of the same modality
NONE = -1


@dataclass(frozen=True)
class Texts:
    """T texts: first those of the campaign's tables, then near misses of them."""

    pooled: Tensor  # float32 [T, D]
    modality: np.ndarray  # str [T]
    tables: int  # how many are of the tables
    near: Sequence[Sequence[np.ndarray]]  # of each text of the tables, by attribute: texts that differ in it alone
    mirrored: np.ndarray  # int64 [T], the same text with the other side; NONE: it does not name one side

    def __len__(self) -> int:
        return len(self.modality)


@dataclass(frozen=True)
class Captioned:
    """C images with captions that are true of them."""

    pixels: Tensor  # uint8 [C, 3, R, R]
    line: np.ndarray  # int64 [C], of the table
    group: np.ndarray  # str [C], see `medsyn.data.tables.split.groups`
    text: np.ndarray  # int64 [C], into `Texts`

    @classmethod
    def none(cls, side: int) -> Captioned:
        """No images, of `side` pixels."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(torch.zeros(0, 3, side, side, dtype=torch.uint8), nothing, nothing.astype(str), nothing)


def collect_texts(tables: Mapping[str, str], embed: Callable[[Iterable[str]], Tensor]) -> Texts:
    """The texts of the tables and their near misses, embedded.

    Args:
        tables: {prompt or caption: its modality}; the first texts of the result, in this order.
        embed: gives pooled text features [N, D] of N texts.
    """
    attributes = CaptionAttributes(tables)
    place = {text: number for number, text in enumerate(tables)}
    modality = list(tables.values())
    near: list[list[np.ndarray]] = []
    for text, its in tables.items():
        by_attribute: dict[str, list[int]] = {}
        for attribute, swapped in _kept(attributes.swaps(text), tables):
            if swapped not in place:
                place[swapped] = len(place)
                modality.append(its)
            by_attribute.setdefault(attribute, []).append(place[swapped])
        near.append([np.array(places) for places in by_attribute.values()])
    mirrored = [place.get(other_side(text) or "", NONE) for text in place]
    return Texts(embed(place), np.array(modality, dtype=str), len(tables), near, np.array(mirrored, dtype=np.int64))


def _kept(swaps: Sequence[Swap], tables: Mapping[str, str]) -> list[Swap]:
    """At most MOST_PER_ATTRIBUTE of each attribute: first those that are true of other images, the others by lot."""
    order = sorted(swaps, key=lambda swap: (swap.attribute, swap.caption not in tables, seed("near", swap.caption)))
    kept: dict[str, list[Swap]] = {}
    for swap in order:
        its = kept.setdefault(swap.attribute, [])
        if len(its) < MOST_PER_ATTRIBUTE:
            its.append(swap)
    return [swap for its in kept.values() for swap in its]


class WrongTexts:
    """Texts that are wrong of an image, by assumption: a table does not say which others would fit it.

    A text that is true of another image of the same group (a patient, a family) is no wrong one.
    """

    def __init__(self, texts: Texts, true: Iterable[tuple[str, int]]) -> None:
        """Of images given as `true`: (group, text) of each."""
        self._texts = texts
        self._true: dict[str, set[int]] = {}
        for group, text in true:
            self._true.setdefault(group, set()).add(int(text))
        places = np.arange(texts.tables)
        of_tables = texts.modality[: texts.tables]
        self._same = {name: places[of_tables == name] for name in np.unique(of_tables)}
        self._others = {name: places[of_tables != name] for name in self._same}

    def draw(self, text: int, group: str, rng: np.random.Generator) -> list[int]:
        """Wrong texts of an image with a true one: NEAR near misses and ELSEWHERE others, or fewer if there are none.

        `text` is one of the tables'.
        """
        true = self._true.get(group, set()) | {text}
        attributes = [places for its in self._texts.near[text] if len(places := _without(its, true))]
        chosen = [int(rng.choice(attributes[number])) for number in rng.permutation(len(attributes))[:NEAR]]
        for _ in range(ELSEWHERE):
            name = str(self._texts.modality[text])
            pools = self._same[name], self._others[name]
            first, second = pools if rng.random() < SAME_MODALITY_ODDS else pools[::-1]
            pool = _without(first, true)
            pool = pool if len(pool) else _without(second, true)
            chosen += [int(rng.choice(pool))] if len(pool) else []
        return chosen


def _without(places: np.ndarray, true: Set[int]) -> np.ndarray:
    return places[np.isin(places, list(true), invert=True)]
