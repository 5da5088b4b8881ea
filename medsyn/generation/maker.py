"""Makes one block after the other, of one modality and in any mode: one that is there is left alone.

Where tasks help one another a block is touched only under its lease (`medsyn.generation.lease`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.config import Config
from medsyn.generation.background import Writer
from medsyn.generation.block import Order, make_block
from medsyn.generation.filter import FAILED
from medsyn.generation.journal import journal_directory
from medsyn.generation.lease import LeaseLost, Leases, lease_file
from medsyn.generation.loader import Loader
from medsyn.generation.painter import Painter
from medsyn.generation.shard import Blocks, finished_block, read_manifest

Place = tuple[str, int]  # a block: mode and number


@dataclass
class BlockMaker:
    """The models and the blocks of one modality; the models of one mode at a time are loaded."""

    config: Config
    loader: Loader
    blocks: Blocks
    facts: Mapping[str, Mapping[str, Any]]  # by mode: what is on record about every image
    leases: Leases | None = None  # None: no other task makes these blocks
    _loaded: dict[str, Painter] = field(default_factory=dict)

    def block(self, place: Place) -> Path:
        """Where a block is."""
        return self.loader.directory.block(place[0], self.loader.modality, place[1])

    @property
    def modes(self) -> list[str]:
        """All modes, first the one whose models are loaded."""
        return sorted(self.facts, key=lambda mode: mode not in self._loaded)

    def settle(self, place: Place, writer: Writer, tell: Callable[[int], None]) -> list[str] | None:
        """Make a block unless it is there; return the ids of its prompts that failed.

        Args:
            place: which block.
            writer: writes it; the block is on disk when the writer is closed.
            tell: as for `make_block`.

        Returns:
            None if the block is left to another task, which holds its lease.
        """
        block = self.block(place)
        if self.leases is not None and not is_settled(block):
            if not self.leases.take(block):
                return None
            sweep([block])
        items, facts = self.blocks.items(place[1]), self.facts[place[0]]
        manifest = finished_block(block, items, facts)
        if manifest is not None:
            self._give_back(block)
            return [record["id"] for record in manifest if record["reason"] == FAILED]
        order = Order.of(self.config, self.loader.directory, block, items, facts)

        def before_batch(settled: int) -> None:
            if self.leases is not None:
                self.leases.require(block)
            tell(settled)

        try:
            return make_block(order, self._painter(place[0]), writer, before_batch, lambda: self._give_back(block))
        except LeaseLost:
            return None

    def _give_back(self, block: Path) -> None:
        if self.leases is not None:
            self.leases.give_back(block)

    def _painter(self, mode: str) -> Painter:
        if mode not in self._loaded:
            self._loaded.clear()  # before the others are loaded: a card has room for one mode's
            self._loaded[mode] = self.loader.painter(mode)
        return self._loaded[mode]


def is_settled(block: Path) -> bool:
    """Whether the block is whole and nothing that its makers need is left beside it."""
    return not (lease_file(block).exists() or journal_directory(block).exists()) and read_manifest(block) is not None


def sweep(blocks: Sequence[Path]) -> None:
    """Remove what killed processes left of these blocks, and the journals of those that are committed."""
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
