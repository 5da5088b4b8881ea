"""Which images to rate and which pairs to compare next: those whose answers are expected to say most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from medsyn.rating.quality import Belief, pair_information, rating_information

_MOST_PAIRS = 200_000  # whose information is computed: those of images of close rank, where there are more
_TIMES = 2  # an image is in so many pairs of one set: the first answer already changes what the next would say


def choose_ratings(belief: Belief, strata: Sequence[Hashable], most: int, of: np.random.Generator) -> list[int]:
    """At most `most` images to rate next, evenly from all strata, within each by expected information.

    Args:
        belief: about all images.
        strata: of each image, such as its modality; an image whose stratum is None is not asked about.
        most: how many are wanted.
        of: breaks ties.
    """
    taken: Counter[Hashable] = Counter()
    turns: list[tuple[int, int, int]] = []
    for image in _descending(rating_information(belief), of):
        if strata[image] is not None:
            turns.append((taken[strata[image]], len(turns), image))
            taken[strata[image]] += 1
    return [image for _, _, image in sorted(turns)[:most]]


def _descending(information: np.ndarray, of: np.random.Generator) -> list[int]:
    """Places in descending order; ties, to a thousandth of a nat, are broken at random."""
    order: list[int] = np.lexsort((of.random(len(information)), -np.round(information, 3))).tolist()
    return order


def choose_pairs(
    belief: Belief, strata: Sequence[Hashable], most: int, of: np.random.Generator
) -> list[tuple[int, int]]:
    """At most `most` pairs within strata to compare next, by expected information.

    Arguments are those of `choose_ratings`; images of different strata are not compared.
    """
    first, second = _candidates(belief, strata)
    if len(first) == 0:
        return []
    order = _descending(pair_information(belief, first, second), of)
    return list(_spread_out(((int(first[place]), int(second[place])) for place in order), most))


def _candidates(belief: Belief, strata: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    members: dict[Hashable, list[int]] = {}
    for image in np.argsort(belief.mean, kind="stable"):
        if strata[image] is not None:
            members.setdefault(strata[image], []).append(int(image))
    total = sum(len(its) * (len(its) - 1) // 2 for its in members.values())
    firsts, seconds = [np.empty(0, int)], [np.empty(0, int)]
    for its in members.values():
        ranked = np.array(its)
        farthest = len(its) if total <= _MOST_PAIRS else max(1, _MOST_PAIRS // max(1, sum(map(len, members.values()))))
        for distance in range(1, min(farthest + 1, len(its))):
            firsts.append(ranked[:-distance])
            seconds.append(ranked[distance:])
    return np.concatenate(firsts), np.concatenate(seconds)


def _spread_out(pairs: Iterator[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    used: Counter[int] = Counter()
    given = 0
    for pair in pairs:
        if given == most:
            return
        if all(used[image] < _TIMES for image in pair):
            used.update(pair)
            given += 1
            yield pair
