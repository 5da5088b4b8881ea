"""What a scorer learns from, of all sources, in one form: images, judgements of them, and comparisons between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.folds import Folds
from medsyn.training.scorers.measured import VERSIONS, VERSIONS_COMPARED
from medsyn.training.scorers.rated import RatedPairs, RatedSet
from medsyn.training.scorers.thresholds import GENERATED, PHOTOGRAPH, SAMPLED, SPOILT

RATED = "rated"  # the kind of a comparison by experts
DECODED_WEIGHT = 0.5  # of a good image's passage through the decoder, relative to its rating


@dataclass(frozen=True)
class Judged:
    """J statements about single images."""

    image: np.ndarray  # int64 [J]
    target: np.ndarray  # float64 [J], 0 poor, 1 good
    weight: np.ndarray  # float64 [J]


@dataclass(frozen=True)
class Lessons:
    """I images and what is known of them."""

    pixels: Tensor  # uint8 [I, 3, R, R]
    modality: np.ndarray  # str [I]
    group: np.ndarray  # str [I]
    fold: np.ndarray  # int64 [I]
    versions: np.ndarray  # int64 [I]
    ratings: Judged  # by experts
    pulls: Judged  # by assumption: originals are good, what is severely damaged is poor
    better: np.ndarray  # int64 [P]
    worse: np.ndarray  # int64 [P]
    preference: np.ndarray  # float64 [P], 1 or 0.5
    pair_weight: np.ndarray  # float64 [P], mean 1
    kind: np.ndarray  # str [P]
    sampled: np.ndarray  # bool [P]: both images are the generator's own
    familiar: np.ndarray  # bool [I]: an image as it may come, and not one that was damaged to learn from
    origin: np.ndarray  # int64 [I], see `medsyn.training.scorers.thresholds`; of rated and of sampled images


@dataclass(frozen=True)
class _Part:
    """What one source adds: its images, and what is known of them, by their places in it."""

    pixels: Tensor
    modality: np.ndarray
    group: np.ndarray
    versions: int
    pulls: list[Judged]
    better: np.ndarray
    worse: np.ndarray
    preference: np.ndarray
    weight: np.ndarray
    kind: np.ndarray
    sampled: bool
    familiar: np.ndarray
    origin: np.ndarray


def lessons_of(
    rated: RatedSet, pairs: RatedPairs, folds: Folds, degraded: Sequence[Comparisons], sampled: Sequence[Comparisons]
) -> Lessons:
    """Put everything together.

    Args:
        rated: the ratings, whose images also hold those of the rated pairs.
        pairs: comparisons by experts.
        folds: who is trained without what.
        degraded: good images against damaged copies of themselves; images that are never the worse one are good.
        sampled: the generator's images against each other.
    """
    parts = [_rated(rated, pairs), *map(_degraded, degraded), *map(_sampled, sampled)]
    starts = np.cumsum([0, *(len(part.pixels) for part in parts)])

    def joined(name: str, shifted: bool = False) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        return np.concatenate([start + one for start, one in zip(starts, arrays, strict=False)] if shifted else arrays)

    def each(name: str, of: str) -> np.ndarray:
        return np.concatenate([np.full(len(getattr(part, of)), getattr(part, name)) for part in parts])

    pulls = [
        Judged(start + one.image, one.target, one.weight)
        for start, part in zip(starts, parts, strict=False)
        for one in part.pulls
    ]
    group = joined("group").astype(str)
    return Lessons(
        pixels=torch.cat([part.pixels for part in parts]),
        modality=joined("modality").astype(str),
        group=group,
        fold=folds.of(group.tolist()),
        versions=each("versions", "pixels"),
        ratings=Judged(rated.image, rated.good.astype(np.float64), rated.weight.astype(np.float64)),
        pulls=Judged(*(np.concatenate([getattr(one, name) for one in pulls]) for name in _JUDGED)),
        better=joined("better", shifted=True),
        worse=joined("worse", shifted=True),
        preference=joined("preference"),
        pair_weight=joined("weight").astype(np.float64),
        kind=joined("kind").astype(str),
        sampled=each("sampled", "better"),
        familiar=joined("familiar"),
        origin=joined("origin"),
    )


_JUDGED = ("image", "target", "weight")


def _pull(images: np.ndarray, target: float, weight: float = 1.0) -> Judged:
    return Judged(images.astype(np.int64), np.full(len(images), target), np.full(len(images), weight))


def _rated(rated: RatedSet, pairs: RatedPairs) -> _Part:
    """The experts' pairs, the images that they call bad, and the decoder's versions of good ones."""
    decided, bad = ~pairs.neither, np.concatenate([pairs.a[pairs.neither], pairs.b[pairs.neither]])
    return _Part(
        *(rated.pixels, rated.image_modality, rated.image_group, VERSIONS),
        [_pull(rated.decoded, 1.0, DECODED_WEIGHT), _pull(bad, 0.0)],
        *(pairs.a[decided], pairs.b[decided], pairs.preference[decided], np.ones(int(decided.sum()))),
        np.full(int(decided.sum()), RATED),
        sampled=False,
        familiar=np.ones(len(rated.pixels), dtype=bool),
        origin=np.where(rated.generated, GENERATED, PHOTOGRAPH),
    )


def _degraded(made: Comparisons) -> _Part:
    """Damaged copies: what any expert would call poor, and originals that are good; those alone are to be expected."""
    original = np.isin(np.arange(len(made.pixels)), made.worse, invert=True)
    pulls = [_pull(np.flatnonzero(original), 1.0), _pull(np.unique(made.worse[made.severe]), 0.0)]
    return _part(made, pulls, False, original, np.full(len(made.pixels), PHOTOGRAPH))


def _sampled(made: Comparisons) -> _Part:
    """The generator's images: all are to be expected, and a well sampled one is not good for being well sampled."""
    pulls = [_pull(np.unique(made.worse[made.severe]), 0.0)]
    origin = np.full(len(made.pixels), SAMPLED)
    origin[made.worse] = SPOILT
    return _part(made, pulls, True, np.ones(len(made.pixels), dtype=bool), origin)


def _part(made: Comparisons, pulls: list[Judged], sampled: bool, familiar: np.ndarray, origin: np.ndarray) -> _Part:
    return _Part(
        *(made.pixels, made.modality, made.group, VERSIONS_COMPARED, pulls, made.better, made.worse),
        *(np.ones(len(made.better)), made.weight, made.kind, sampled, familiar, origin),
    )
