"""Does this source fit an image better than anything of any other patient does? By how much, in six ways.

The margin over the best other patient is a likelihood ratio in disguise: noise, blur and anatomy that patients share
lower or raise both sides of it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsyn.evaluation.memorization.candidates import Candidates
from medsyn.evaluation.memorization.maps import Maps
from medsyn.evaluation.memorization.register import UNMOVED, Fit, Query, Similarity

WAYS = ("mid", "plain", "coarse", "fine", "whole", "half")  # four bands, their mean, and the best half
# Candidates that are registered finely: the best coarse fits, of other patients than the best one's at least, and the
# likeliest of which a half is like the image's.
_FITTING, _OF_OTHERS, _BY_HALVES = 4, 2, 2


@dataclass(frozen=True)
class Registered:
    """A source that an image was laid upon."""

    source: int
    patient: str
    values: np.ndarray  # float64 [6], `WAYS`: how well it fits, as `evidence`

    @property
    def overall(self) -> float:
        """How well the whole fits."""
        return float(self.values[WAYS.index("whole")])


@dataclass(frozen=True)
class Match:
    """What was found of one image: its registered sources, best first, and its margins."""

    registered: tuple[Registered, ...]
    margins: np.ndarray  # float64 [6], `WAYS`; 0 where no source was found

    @property
    def best(self) -> Registered | None:
        """The source that fits best as a whole."""
        return self.registered[0] if self.registered else None

    def source_of(self, way: int) -> Registered | None:
        """The source that fits best in one of the `WAYS`."""
        return max(self.registered, key=lambda one: float(one.values[way]), default=None)


def match(image: Maps, source: Callable[[int], Maps], patients: Sequence[str], candidates: Candidates) -> Match:
    """Lay an image upon the likeliest candidates, and compare the best with those of other patients.

    Args:
        image: that may be a copy.
        source: gives the maps of a real image by its place.
        patients: of each real image.
        candidates: places of real images.
    """
    query = Query(image)
    fits = {place: [query.coarsely(source(place))] for place in candidates.everything}
    for place in candidates.by_halves:
        fits[place].append(UNMOVED)
    found = []
    for place in _likeliest(fits, candidates, patients):
        tried = [query.refined(source(place), fit) for fit in fits[place]]
        values = max((_values(query.compared(source(place), fit)) for fit in tried), key=lambda each: float(each[-1]))
        found.append(Registered(place, patients[place], values))
    found.sort(key=lambda one: -one.overall)
    return Match(tuple(found), np.array([_margin(found, way) for way in range(len(WAYS))]))


def _likeliest(fits: Mapping[int, Sequence[Fit]], candidates: Candidates, patients: Sequence[str]) -> list[int]:
    """The places that are looked at closely, with enough of other patients for a margin."""
    order = sorted(fits, key=lambda place: -fits[place][0].peak)
    others = [place for place in order if patients[place] != patients[order[0]]]
    kept = [*order[:_FITTING], *others[:_OF_OTHERS], *candidates.by_halves[:_BY_HALVES]]
    return list(dict.fromkeys(kept))


def _values(similarity: Similarity) -> np.ndarray:
    bands = [similarity.whole[name] for name in WAYS[:4]]
    return np.array([*bands, np.mean(bands), max(similarity.halves.values())])


def _margin(found: Sequence[Registered], way: int) -> float:
    """By how much the best source of one of the `WAYS` fits better than the best of all other patients."""
    if not found:
        return 0.0
    best = max(found, key=lambda one: float(one.values[way]))
    others = [float(one.values[way]) for one in found if one.patient != best.patient]
    return float(best.values[way]) - max(others, default=0.0)
