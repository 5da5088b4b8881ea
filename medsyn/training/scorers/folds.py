"""Which part of the images each member of an ensemble is trained without: a pure function of the tables' rows.

What one member has not seen is scored by it alone, so every image has a score of a network that does not know it, nor
any other image of its patient or family.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from medsyn.seeds import seed

NOBODY = -1  # the fold of an image that every member is trained on


@dataclass(frozen=True)
class Folds:
    """The fold of every group of images; member k is trained without fold k."""

    count: int  # 1: one member, trained on everything
    of_group: Mapping[str, int]
    campaign_seed: int

    def of(self, groups: Iterable[str]) -> np.ndarray:
        """The folds of groups, int64 [N]; a group without ratings has one by lot."""
        return np.array([self._of(group) for group in groups], dtype=np.int64)

    def _of(self, group: str) -> int:
        if self.count == 1:
            return NOBODY
        group = str(group)  # a text of numpy is another seed
        known = self.of_group.get(group)
        return seed("fold", self.campaign_seed, group) % self.count if known is None else known


def split_into_folds(members: Iterable[tuple[str, str, bool]], wanted: int, campaign_seed: int) -> Folds:
    """Split groups of rated images so that good and poor ones of every modality are spread over all folds.

    There are as many folds as are wanted, but no more than groups with good images, nor than groups with poor ones:
    every member must learn from both kinds. With fewer than two of either there is one member, trained on everything.

    Args:
        members: (group, modality, good) of every rated image.
        wanted: number of folds.
        campaign_seed: another seed is another split.
    """
    groups: dict[str, Counter[tuple[str, bool]]] = {}
    for group, modality, good in members:
        groups.setdefault(group, Counter())[modality, good] += 1
    both = [sum(any(is_good == kind for _, is_good in its) for its in groups.values()) for kind in (True, False)]
    count = min(wanted, *both)
    if count < 2:
        return Folds(1, {}, campaign_seed)
    sizes: Counter[tuple[str, bool]] = Counter()
    for its in groups.values():
        sizes.update(its)
    held: list[Counter[tuple[str, bool]]] = [Counter() for _ in range(count)]
    of_group = {}
    # large groups first, while there is room to even them out; equal ones by lot
    order = sorted(groups, key=lambda name: (-groups[name].total(), seed("folds", campaign_seed, name), name))
    for name in order:
        fold = min(range(count), key=lambda k: (_fullness(held[k], groups[name], sizes), held[k].total(), k))
        held[fold].update(groups[name])
        of_group[name] = fold
    return Folds(count, of_group, campaign_seed)


def _fullness(
    held: Counter[tuple[str, bool]], new: Counter[tuple[str, bool]], sizes: Counter[tuple[str, bool]]
) -> float:
    """How much a fold already has of what a group would bring, in shares of each kind of image."""
    return sum(number * held[kind] / sizes[kind] for kind, number in new.items())
