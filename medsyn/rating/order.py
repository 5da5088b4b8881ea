"""The order in which a rater sees a set: a function of the set and of who rates, the same here and in the page.

`page/order.js` has the same few lines in JavaScript; a test compares the two. The generator is mulberry32 (T. Ettinger,
public domain): 32 bits of state are enough to shuffle, and both languages compute it exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from medsyn.rating.formats import Case, Pair, RatingSet

_MASK = 0xFFFFFFFF

Item = TypeVar("Item", Case, Pair)


@dataclass(frozen=True)
class Turn:
    """One thing that a rater is asked."""

    item: str  # the name of a case or a pair
    shown: tuple[str, ...]  # its images, from left to right


def order_for(rating_set: RatingSet, rater: str) -> list[Turn]:
    """All cases, then all pairs, in the order of a rater.

    Sections follow each other, from one that depends on the rater, so two cases that are two sections apart stay so.
    """
    below = _numbers(f"{rating_set.seed}:{rater}")
    first = below(rating_set.sections)
    turns = [Turn(case.id, (case.image,)) for case in _dealt(rating_set.cases, rating_set.sections, first, below)]
    for pair in _dealt(rating_set.pairs, rating_set.sections, first, below):
        shown = pair.images if below(2) == 0 else pair.images[::-1]
        turns.append(Turn(pair.id, shown))
    return turns


def _dealt(items: Sequence[Item], sections: int, first: int, below: Callable[[int], int]) -> Iterator[Item]:
    for number in range(sections):
        section = [item for item in items if item.section == (first + number) % sections]
        for last in range(len(section) - 1, 0, -1):  # Fisher and Yates
            other = below(last + 1)
            section[last], section[other] = section[other], section[last]
        yield from section


def _numbers(text: str) -> Callable[[int], int]:
    """A function that draws a number from 0 to n - 1."""
    state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def below(count: int) -> int:
        nonlocal state
        state = (state + 0x6D2B79F5) & _MASK
        mixed = (state ^ state >> 15) * (state | 1) & _MASK
        mixed ^= (mixed + ((mixed ^ mixed >> 7) * (mixed | 61) & _MASK)) & _MASK
        return ((mixed ^ mixed >> 14) & _MASK) * count >> 32

    return below
