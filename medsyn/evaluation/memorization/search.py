"""Search for copies: what a score means is learnt from the real images themselves.

An honest image is a real one that is compared with the real images of other patients only. How well honest images fit
their best source sets the scale, by modality, and the threshold. What share of honest images passes a threshold is
counted on patients that had no part in choosing it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from medsyn.evaluation.memorization import planted
from medsyn.evaluation.memorization.candidates import Index
from medsyn.evaluation.memorization.maps import Maps, maps_of
from medsyn.evaluation.memorization.margins import WAYS, Match, Registered, match
from medsyn.evaluation.metrics import wilson
from medsyn.seeds import seed

_QUANTILE = 0.9975  # of honest scores; the 99 % quantile of one half of the patients lets 2 to 3 % of the other pass
_LEAST_PATIENTS = 300  # from which on such a quantile is more than a guess
_STEADY = 0.05  # added to a spread: of a few images it may be 0
_AT_ONCE, _MAPS_KEPT = 64, 512
_LEAST = 4  # honest images of a modality, and patients

Tick = Callable[[], None]  # called before each image; may raise `Saved`


@dataclass(frozen=True)
class Picture:
    """An image to search, or to search for."""

    name: str
    modality: str
    pixels: np.ndarray  # uint8 [H, W] or [H, W, 3]
    patient: str = ""  # of a real image; images of one patient are no rivals of each other


@dataclass(frozen=True)
class Query:
    """An image that is looked for."""

    pixels: np.ndarray  # uint8 [H, W] or [H, W, 3]
    without: str | None = None  # the patient whose images are left out


class Library:
    """The real images of one modality, where sources are looked for; 90 kB each in memory."""

    def __init__(self, pictures: Sequence[Picture], tick: Tick = lambda: None) -> None:
        self.pictures = list(pictures)
        self.patients = [picture.patient for picture in pictures]
        self.maps = functools.lru_cache(_MAPS_KEPT)(lambda place: maps_of(self.pictures[place].pixels))

        def each() -> Iterator[Maps]:
            for picture in pictures:
                tick()
                yield maps_of(picture.pixels)

        self._index = Index(each())

    def search(self, queries: Iterable[Query], tick: Tick = lambda: None) -> Iterator[Match]:
        """The match of each query; a few are in memory at a time."""
        patients, left = np.array(self.patients), iter(queries)
        while some := list(islice(left, _AT_ONCE)):
            maps = [maps_of(query.pixels) for query in some]
            excluded = np.stack([patients == query.without for query in some])
            for image, candidates in zip(maps, self._index.candidates(maps, excluded), strict=True):
                tick()
                yield match(image, self.maps, self.patients, candidates)


@dataclass(frozen=True)
class Scale:
    """The honest margins' median, and their spread above it, of each of the `WAYS` [6]."""

    median: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, honest: np.ndarray) -> Scale:
        """The scale of honest margins [N, 6]."""
        median, high = np.quantile(honest, [0.5, 0.9], axis=0)
        return cls(median, high - median)

    def of_margins(self, margins: np.ndarray) -> np.ndarray:
        """Margins [..., 6] in spreads above the median; the largest of them is an image's score."""
        scaled: np.ndarray = (margins - self.median) / (self.spread + _STEADY)
        return scaled


@dataclass(frozen=True)
class Honest:
    """What honest images of a modality look like: two of each real image that was asked, the second one perturbed."""

    margins: np.ndarray  # float64 [N, 6]
    patients: list[str]  # of each
    names: list[str]
    sources: list[str]  # that fits each best, of another patient

    @cached_property
    def _half(self) -> np.ndarray:
        """Which half of the patients each belongs to, bool [N]."""
        order = sorted(set(self.patients), key=lambda patient: seed("copies", "half", patient))
        first = set(order[: len(order) // 2])
        return np.array([patient in first for patient in self.patients])

    @cached_property
    def scale(self) -> Scale:
        """What the margins of other images are measured in."""
        return Scale.of(self.margins)

    @cached_property
    def crossed(self) -> np.ndarray:
        """Scores [N] of the honest images themselves, each on the scale of the other half of the patients."""
        scores = np.zeros(len(self.margins))
        for half in (False, True):
            its = self._half == half
            if its.any() and not its.all():
                scores[its] = Scale.of(self.margins[~its]).of_margins(self.margins[its]).max(axis=1)
        return scores

    @property
    def by_half(self) -> tuple[np.ndarray, np.ndarray]:
        """The same, of each half."""
        return self.crossed[self._half], self.crossed[~self._half]


def honest(library: Library, most: int, campaign_seed: int, tick: Tick = lambda: None) -> Honest | None:
    """Ask a library about its own images, each without its own patient.

    Args:
        library: of one modality.
        most: images that are asked about, by lot.
        campaign_seed: chooses them, and how they are perturbed.
        tick: see `Tick`.

    Returns:
        None where there are too few images, or patients, to say anything.
    """
    if len(library.pictures) < _LEAST or len(set(library.patients)) < _LEAST:
        return None
    lot = sorted(library.pictures, key=lambda picture: seed(campaign_seed, "honest", picture.name))[:most]
    twice = [picture for picture in lot for _ in range(2)]

    def queries() -> Iterator[Query]:
        for picture in lot:
            grey = _grey(picture.pixels)
            random = np.random.default_rng(seed(campaign_seed, "perturbed", picture.name))
            yield Query(grey, picture.patient)
            yield Query(planted.perturbed(grey, random), picture.patient)

    found = list(library.search(queries(), tick))
    sources = ["" if (best := one.best) is None else library.pictures[best.source].name for one in found]
    margins = np.stack([one.margins for one in found])
    return Honest(margins, [picture.patient for picture in twice], [picture.name for picture in twice], sources)


@dataclass(frozen=True)
class Threshold:
    """The score from which on an image counts as a copy, and how many honest images reach it."""

    score: float
    passing: int  # honest images of patients that had no part in choosing a threshold, which pass it all the same
    asked: int
    patients: int

    @property
    def false_positives(self) -> dict[str, float | int]:
        """The share of honest images that pass, with its 95 % interval."""
        low, high = wilson(self.passing, self.asked)
        return {"value": self.passing / self.asked, "low": low, "high": high, "n": self.asked}

    @property
    def is_uncertain(self) -> bool:
        """Whether there are too few patients for such a threshold."""
        return self.patients < _LEAST_PATIENTS


def threshold(honests: Sequence[Honest]) -> Threshold:
    """The threshold of all modalities together; scores are on one scale."""
    halves = [np.concatenate(parts) for parts in zip(*(each.by_half for each in honests), strict=True)]
    everything = np.concatenate(halves)
    passing = sum(
        int((mine > np.quantile(other, _QUANTILE)).sum())
        for mine, other in (halves, halves[::-1])
        if len(mine) and len(other)
    )
    patients = sum(len(set(each.patients)) for each in honests)
    return Threshold(float(np.quantile(everything, _QUANTILE)), passing, len(everything), patients)


@dataclass(frozen=True)
class Finding:
    """An image that fits a real one better than honest images do."""

    name: str
    source: str
    modality: str
    kind: str  # "copy of an image", or "same patient" where other images of the patient fit about as well
    evidence: str  # in which of the `WAYS` it is most unlike honest images
    score: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return vars(self)


COPY, SAME_PATIENT = "copy of an image", "same patient"


def findings(
    library: Library, known: Honest, limit: Threshold, pictures: Sequence[Picture], matches: Sequence[Match]
) -> list[Finding]:
    """Those of the pictures that count as copies, the most certain first."""
    found = []
    for picture, one in zip(pictures, matches, strict=True):
        values = known.scale.of_margins(one.margins)
        way = int(values.argmax())
        best = one.source_of(way)
        if best is not None and values[way] > limit.score:
            kind = _kind(one, best, way, float(known.scale.spread[way]))
            source = library.pictures[best.source].name
            found.append(Finding(picture.name, source, picture.modality, kind, WAYS[way], round(float(values[way]), 3)))
    return sorted(found, key=lambda finding: -finding.score)


def _kind(one: Match, best: Registered, way: int, spread: float) -> str:
    """Whether the source stands out among the other images of its own patient, too."""
    siblings = [
        float(other.values[way])
        for other in one.registered
        if other.patient == best.patient and other.source != best.source
    ]
    stands_out = not siblings or float(best.values[way]) - max(siblings) > spread
    return COPY if stands_out else SAME_PATIENT


def _grey(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        return pixels
    return np.round(pixels.mean(axis=2, dtype=np.float32)).astype(np.uint8)


def planted_recall(
    library: Library, known: Honest, limit: Threshold, copies: int, campaign_seed: int, tick: Tick = lambda: None
) -> dict[str, tuple[int, int]]:
    """How many of the copies that were made on purpose are found: (found, planted) by kind.

    Args:
        library: whose images are copied.
        known: its honest images.
        limit: the threshold.
        copies: of each kind, of images by lot.
        campaign_seed: chooses them.
        tick: see `Tick`.
    """
    kinds, queries = [], []
    for kind in planted.kinds():
        lot = sorted(library.pictures, key=lambda picture: seed(campaign_seed, "planted", kind, picture.name))
        for number, picture in enumerate(lot[:copies]):
            random = np.random.default_rng(seed(campaign_seed, "planted", kind, picture.name, "change"))
            source, other = _grey(picture.pixels), _grey(lot[(number + 1) % len(lot)].pixels)
            if kind == planted.HALF and source.shape != other.shape:
                continue
            changed = planted.half_of(source, other) if kind == planted.HALF else planted.CHANGES[kind](source, random)
            queries.append(Query(changed))
            kinds.append(kind)
    found = library.search(queries, tick)
    counts = dict.fromkeys(planted.kinds(), (0, 0))
    for kind, one in zip(kinds, found, strict=True):
        passes = bool(known.scale.of_margins(one.margins).max() > limit.score)
        counts[kind] = counts[kind][0] + passes, counts[kind][1] + 1
    return counts
