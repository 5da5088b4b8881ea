"""Which images are held out from training: a pure function of the table's rows, so no list of names is kept.

The share is exact for each stratum (a modality; of ratings, the poor and the good ones of a modality) as far as
patients, and families of images that were made from one another, allow it: they stay together. The order of the rows
does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.seeds import seed

Row = ImageRow | RatingRow
TableRow = TypeVar("TableRow", ImageRow, RatingRow)


def hold_out(rows: Iterable[Row], fraction: float, campaign_seed: int) -> Callable[[Row], bool]:
    """What tells whether a row is held out.

    Args:
        rows: all good rows of the table, whatever their modality; a part of them would be split otherwise.
        fraction: the share that is held out, above 0 and below 1.
        campaign_seed: another seed is another split.
    """
    rows = list(rows)
    group_of = groups(rows)
    images = {(row.file, _stratum(row)) for row in rows}
    chosen = held_out_groups(((group_of[file], stratum) for file, stratum in images), fraction, campaign_seed)
    return lambda row: group_of[row.file] in chosen


def by_lot(rows: Iterable[TableRow], most: int, lot: Callable[[TableRow], int]) -> list[TableRow]:
    """At most `most` of the rows, those with the lowest lots, in the table's order."""
    drawn = sorted(rows, key=lambda row: (lot(row), row.row))[:most]
    return sorted(drawn, key=lambda row: row.row)


def groups(rows: Iterable[Row], together: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """The group of every file, which stays together: images of one patient, of one family, or linked by such images.

    A group is called after its patient, else its family, else its file as the table names it (moving the data is no
    change). Two files that are `together` are of one group, whatever the rows say.
    """
    files = _DisjointSets()
    for one, other in together:
        files.join((_FILE, one), (_FILE, other))
    for row in rows:
        files.find((_FILE, row.file))
        if row.patient_id:
            files.join((_FILE, row.file), (_PATIENT, row.patient_id))
        if isinstance(row, RatingRow) and row.group:
            files.join((_FILE, row.file), (_FAMILY, row.group))
    return {key: files.find((kind, key))[1] for kind, key in files.members() if kind == _FILE}


_PATIENT, _FAMILY, _FILE = range(3)  # the first that a group has names it
_Node = tuple[int, str]


class _DisjointSets:
    """Sets that grow together; the smallest member of each stands for it."""

    def __init__(self) -> None:
        self._above: dict[_Node, _Node] = {}

    def members(self) -> list[_Node]:
        return list(self._above)

    def find(self, node: _Node) -> _Node:
        above = self._above.setdefault(node, node)
        while above != node:
            node, self._above[node] = above, self._above[above]
            above = self._above[node]
        return node

    def join(self, one: _Node, other: _Node) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self._above[high] = low


def _stratum(row: Row) -> str:
    return f"{row.modality} {row.rating == 1}" if isinstance(row, RatingRow) else row.modality


def held_out_groups(members: Iterable[tuple[str, str]], fraction: float, campaign_seed: int) -> set[str]:
    """The groups that are held out, in an order drawn by the seed until every stratum has its share.

    Every stratum with two groups or more has something on both sides.

    Args:
        members: (group, stratum) of every image.
        fraction: see `hold_out`.
        campaign_seed: see `hold_out`.
    """
    groups: dict[str, Counter[str]] = {}
    for key, stratum in members:
        groups.setdefault(key, Counter())[stratum] += 1
    draw = _Draw(groups, fraction)
    order = sorted(groups, key=lambda key: (seed("held out", campaign_seed, key), key))
    strata = sorted(draw.sizes, key=lambda stratum: (draw.sizes[stratum], stratum))
    for stratum in strata:  # the rarest first: few groups can give it its share
        for key in order:
            if groups[key][stratum] and draw.fits(key):
                draw.take(key)
    for key in order:
        if draw.comes_closer(key):
            draw.take(key)
    for stratum in strata:
        its = [key for key in order if groups[key][stratum] and draw.leaves_some(key)]
        if not draw.held[stratum] and its:
            draw.take(min(its, key=lambda key: groups[key].total()))
    return draw.chosen


class _Draw:
    """The groups chosen so far, and how many images each stratum still wants."""

    def __init__(self, groups: dict[str, Counter[str]], fraction: float) -> None:
        self._groups = groups
        self.sizes: Counter[str] = Counter()
        for of_group in groups.values():
            self.sizes.update(of_group)
        self.wanted = {
            stratum: min(max(int(fraction * size + 0.5), 1), size - 1) for stratum, size in self.sizes.items()
        }
        self.held: Counter[str] = Counter()
        self.chosen: set[str] = set()

    def take(self, key: str) -> None:
        self.chosen.add(key)
        self.held.update(self._groups[key])
        for stratum, number in self._groups[key].items():
            self.wanted[stratum] -= number

    def fits(self, key: str) -> bool:
        """Whether no stratum would get more than it wants."""
        its = self._groups[key].items()
        return key not in self.chosen and all(number <= self.wanted[stratum] for stratum, number in its)

    def comes_closer(self, key: str) -> bool:
        """Whether the shares are better with the group than without."""
        without = sum(abs(self.wanted[stratum]) for stratum in self._groups[key])
        with_it = sum(abs(self.wanted[stratum] - number) for stratum, number in self._groups[key].items())
        return with_it < without and self.leaves_some(key)

    def leaves_some(self, key: str) -> bool:
        """Whether the group may be taken, and every stratum keeps something to train on."""
        return key not in self.chosen and all(
            self.held[stratum] + number < self.sizes[stratum] for stratum, number in self._groups[key].items()
        )
