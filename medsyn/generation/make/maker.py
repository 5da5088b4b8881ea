"""Which blocks are made: those that do not exist yet, of one modality and in any mode. An existing block is left alone.

With work stealing a block is touched only under its lease (`medsyn.lease`). A lease that fails costs time but no
image: what a block holds does not depend on which task makes it, and one rename commits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.config import Config
from medsyn.generation.block_store import Blocks, finished_block, read_manifest, rejected_directory
from medsyn.generation.filter import FAILED
from medsyn.generation.make.block import Order
from medsyn.generation.make.journal import journal_directory
from medsyn.generation.make.packing import OpenBlock, make_blocks
from medsyn.generation.make.writer_thread import Writer
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.generation.sample.load import Loader
from medsyn.lease import LeaseLost, Leases, lease_file

Place = tuple[str, int]  # a block: mode and number


@dataclass
class Work:
    """What has become of blocks: those that are settled, those that are open, and those left to other tasks."""

    blocks: int = 0  # settled
    opened: list[OpenBlock] = field(default_factory=list)
    left: list[Place] = field(default_factory=list)
    failed: dict[str, None] = field(default_factory=dict)  # prompt ids, in order and once
    _images: int = 0  # of settled blocks
    _accepted: int = 0
    _found: int = 0

    @property
    def images(self) -> int:
        """Settled items."""
        return self._images + sum(block.progress.settled_count for block in self.opened)

    @property
    def accepted(self) -> int:
        """Those of them with an accepted image."""
        return self._accepted + sum(block.progress.accepted_count for block in self.opened)

    @property
    def found(self) -> int:
        """Those of them that an earlier attempt or another task has settled."""
        return self._found + sum(block.progress.found for block in self.opened)

    def add(self, images: int, accepted: int, found: int, failed: Iterable[str]) -> None:
        """Count a settled block."""
        self.blocks += 1
        self._images += images
        self._accepted += accepted
        self._found += found
        self.failed |= dict.fromkeys(failed)


@dataclass
class BlockMaker:
    """The models and the blocks of one modality; only one UNet is loaded at a time, and only once for all its modes."""

    config: Config
    loader: Loader
    blocks: Blocks
    facts: Mapping[str, Mapping[str, Any]]  # by mode: what is recorded about every image
    leases: Leases | None = None  # None: no other task makes these blocks
    _loaded: dict[str, ImageSampler] = field(default_factory=dict)

    def block(self, place: Place) -> Path:
        """Where a block is."""
        return self.loader.directory.block(place[0], self.loader.modality, place[1])

    @property
    def modes(self) -> list[str]:
        """All modes, those of one UNet after one another, first those whose models are loaded."""
        first = {mode: next(other for other in self.facts if self.loader.same_unet(mode, other)) for mode in self.facts}
        order, ready = list(self.facts), {first[mode] for mode in self._loaded}
        return sorted(
            order, key=lambda mode: (first[mode] not in ready, order.index(first[mode]), mode not in self._loaded)
        )

    def load(self) -> None:
        """Load the models of every mode: for who has the room."""
        for mode in self.facts:
            self._loaded[mode] = self.loader.sampler(mode, self._loaded)

    def of(self, config: Config, loader: Loader) -> BlockMaker:
        """The same with its models, for a configuration that computes the same."""
        return BlockMaker(config, loader, self.blocks, self.facts, _loaded=dict(self._loaded))

    def make(self, places: Iterable[Place], writer: Writer, work: Work, tell: Callable[[], None]) -> None:
        """Make the blocks that do not exist.

        Args:
            places: which blocks, those of one mode after one another; asked for the next one when it is needed.
            writer: writes them; they are on disk when it is closed.
            work: kept up to date.
            tell: called before each batch; may raise to stop. What has been sampled is in the journals by the time
                `writer` is closed.
        """

        def before_batch() -> None:
            for block in [block for block in work.opened if not self._is_mine(block)]:
                work.opened.remove(block)
                work.left.append(opened[block])
            tell()

        for mode, of_mode in groupby(places, key=lambda place: place[0]):
            opened: dict[OpenBlock, Place] = {}
            further = self._open(of_mode, writer, work, opened)
            if (first := next(further, None)) is None:
                continue
            sampler, blocks = self._sampler(mode), chain([first], further)
            for block in make_blocks(work.opened, blocks, sampler, writer, before_batch, self._committed):
                settled = block.progress
                work.add(len(settled.trials), settled.accepted_count, settled.found, settled.failed)

    def _open(
        self, places: Iterable[Place], writer: Writer, work: Work, opened: dict[OpenBlock, Place]
    ) -> Iterator[OpenBlock]:
        """Open one block after the other; those that exist or are left to other tasks are counted and passed by."""
        recipe = Recipe.of(self.config, self.loader.modality)
        for place in places:
            path = self.block(place)
            if self.leases is not None and not is_settled(path):
                if not self.leases.take(path):
                    work.left.append(place)
                    continue
                sweep([path])
            items, facts = self.blocks.items(place[1]), self.facts[place[0]]
            manifest = finished_block(path, items, facts)
            if manifest is not None:
                self._give_back(path)
                failed = [record["id"] for record in manifest if record["reason"] == FAILED]
                work.add(len(items), sum(record["accepted"] for record in manifest), len(items), failed)
                continue
            order = Order.of(self.config, self.loader.directory, path, items, facts)
            block = OpenBlock.open(order, recipe, writer)
            opened[block] = place
            yield block

    def _is_mine(self, block: OpenBlock) -> bool:
        try:
            if self.leases is not None:
                self.leases.require(block.progress.order.path)
        except LeaseLost:
            return False
        return True

    def _committed(self, block: OpenBlock) -> None:
        self._give_back(block.progress.order.path)

    def _give_back(self, block: Path) -> None:
        if self.leases is not None:
            self.leases.give_back(block)

    def _sampler(self, mode: str) -> ImageSampler:
        if mode not in self._loaded:
            for other in [other for other in self._loaded if not self.loader.same_unet(mode, other)]:
                del self._loaded[other]  # before the next is loaded: a GPU has room for one
            self._loaded[mode] = self.loader.sampler(mode, self._loaded)
        return self._loaded[mode]


def is_settled(block: Path) -> bool:
    """Whether the block is whole and nothing that its makers need is left beside it."""
    return not (lease_file(block).exists() or journal_directory(block).exists()) and read_manifest(block) is not None


def sweep(blocks: Sequence[Path]) -> None:
    """Remove what killed processes left of these blocks and what they rejected, and the journals of committed ones."""
    blocks = [*blocks, *map(rejected_directory, blocks)]
    for part in dict.fromkeys(block.parent for block in blocks):
        names = {path.name for path in part.iterdir()} if part.is_dir() else set()
        left = {name.partition(".tmp-")[0] for name in names if ".tmp-" in name}
        for block in blocks:
            if block.parent != part:
                continue
            for name in (block.name, lease_file(block).name.removeprefix(".")):
                if f".{name}" in left:
                    disk.sweep_temporaries(part, of=name)
            if journal_directory(block).name in names and block.name in names:
                disk.remove(journal_directory(block))
