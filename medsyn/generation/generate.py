"""The stage `generate`: one shard's blocks of one modality, in every mode, each block committed whole.

Blocks that are there are left alone, so the files are the same whatever the shards, the order and the interruptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.generation.background import Writer
from medsyn.generation.block import Order, make_block
from medsyn.generation.facts import CIRCUMSTANCES_FILE, require_same
from medsyn.generation.filter import FAILED
from medsyn.generation.journal import journal_directory
from medsyn.generation.loader import Loader
from medsyn.generation.shard import Blocks, finished_block, read_blocks
from medsyn.generation.shard_tables import write_shard_tables
from medsyn.stage import CampaignDirectory, Control, NoProgress, Task


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Make those of the blocks `task.blocks` of `task.modality` that are not there yet, mode by mode.

    Raises:
        InputError: an earlier stage's result is missing, blocks of other settings are in the way, or a batch does
            not fit into the device's memory.
        NoProgress: prompts spent their attempts and `on_exhausted` is `fail`; their blocks are on disk all the same.
        Saved: a stop was requested; every batch that was painted is on disk.
    """
    modality = task.modality
    assert modality is not None, "a generate task has a modality"
    blocks = read_blocks(config, modality)
    numbers = range(*(task.blocks or (0, blocks.count)))
    if numbers.stop > blocks.count:
        reason = f"has {blocks.count} blocks of {modality}, the task was planned for {numbers.stop}: plan again"
        raise InputError(str(config.data.prompts), reason)
    loader = Loader(config, modality, directory)
    facts = {mode: loader.facts(mode) for mode in config.generation.modes}
    made_with = directory.work("generate", CIRCUMSTANCES_FILE)
    disk.sweep_temporaries(made_with.parent)
    for its in facts.values():
        require_same(made_with, its, keep=False)
    for mode in facts:  # never later: the task may be running a second time by then
        _sweep([directory.block(mode, modality, number) for number in numbers])
        disk.sweep_temporaries(directory.shard(mode, modality, (numbers.start, numbers.stop)))
    shard = _Shard(config, loader, blocks, numbers, control, len(facts) * blocks.count_items(numbers))
    with memory_told(config), Writer() as writer:
        for mode, its in facts.items():
            shard.make(mode, its, writer)
    for mode in facts:
        write_shard_tables(directory, mode, modality, (numbers.start, numbers.stop))
    control.beat(shard.total, shard.total, "image")
    if shard.failed:
        raise NoProgress(_exhausted(list(shard.failed)))


def _sweep(blocks: Sequence[Path]) -> None:
    """Remove what killed processes left of these blocks, and the journals of those that are committed."""
    for part in dict.fromkeys(block.parent for block in blocks):
        names = {path.name for path in part.iterdir()} if part.is_dir() else set()
        left = {name.partition(".tmp-")[0] for name in names if ".tmp-" in name}
        for block in blocks:
            if block.parent == part and f".{block.name}" in left:
                disk.sweep_temporaries(part, of=block.name)
            if block.parent == part and journal_directory(block).name in names and block.name in names:
                disk.remove(journal_directory(block))


@dataclass
class _Shard:
    """A task's blocks, and how far it is."""

    config: Config
    loader: Loader
    blocks: Blocks
    numbers: range
    control: Control
    total: int  # images, all modes
    done: int = 0
    failed: dict[str, None] = field(default_factory=dict)  # prompt ids, in order and once

    def make(self, mode: str, facts: Mapping[str, Any], writer: Writer) -> None:
        """All blocks of one mode."""
        painter = None
        for number in self.numbers:
            block, items = self.loader.directory.block(mode, self.loader.modality, number), self.blocks.items(number)
            manifest: Sequence[Mapping[str, Any]] | None = finished_block(block, items, facts)
            if manifest is None:
                painter = painter or self.loader.painter(mode)
                order = Order.of(self.config, self.loader.directory, block, items, facts)
                failed = make_block(order, painter, writer, self._between_batches)
            else:
                failed = [record["id"] for record in manifest if record["reason"] == FAILED]
            self.failed |= dict.fromkeys(failed)
            self.done += len(items)

    def _between_batches(self, settled: int) -> None:
        self.control.leave_if_asked()  # costs nothing: what is painted is in the journal
        self.control.beat(self.done + settled, self.total, "image")


@contextmanager
def memory_told(config: Config) -> Iterator[None]:
    """Say what to set where a batch does not fit; the batch size is never changed behind the user's back."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        size = config.generation.images_per_batch
        reason = f"a batch of {size} does not fit into the GPU's memory ({str(error).splitlines()[0]})"
        way_out = f"set it to {size // 2}" if size > 1 else "take a smaller data.resolution"
        raise InputError("configuration", f"{reason}: {way_out}", key="generation.batch_size") from None


def _exhausted(prompt_ids: Sequence[str]) -> str:
    shown = ", ".join(prompt_ids[:10]) + (f" and {len(prompt_ids) - 10} more" if len(prompt_ids) > 10 else "")
    return f"no acceptable image after generation.max_attempts for prompts {shown} (generation.on_exhausted is 'fail')"
