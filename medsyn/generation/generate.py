"""The stage `generate`: one shard's blocks of one modality, in every mode, each block committed whole.

Blocks that are there are left alone, so the files are the same whatever the shards, the order and the interruptions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.generation.background import Writer
from medsyn.generation.helping import help_others
from medsyn.generation.lease import Leases
from medsyn.generation.loader import Loader
from medsyn.generation.made_with import CIRCUMSTANCES_FILE, require_same
from medsyn.generation.maker import BlockMaker, Place, sweep
from medsyn.generation.shard import read_blocks
from medsyn.generation.shard_tables import write_shard_tables
from medsyn.stage import CampaignDirectory, Control, NoProgress, Task

WAIT_SECONDS = 1.0  # between two looks at blocks that other tasks are at work on


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
    facts: dict[str, dict[str, Any]] = {mode: loader.facts(mode) for mode in config.generation.modes}
    made_with = directory.work("generate", CIRCUMSTANCES_FILE)
    disk.sweep_temporaries(made_with.parent)
    for its in facts.values():
        require_same(made_with, its, keep=False)
    for mode in facts:  # never later: the task may be running a second time by then
        disk.sweep_temporaries(directory.shard(mode, modality, (numbers.start, numbers.stop)))
        if not config.cluster.claim:
            sweep([directory.block(mode, modality, number) for number in numbers])
    with Leases(task.name) if config.cluster.claim else nullcontext() as leases:
        shard = _Shard(BlockMaker(config, loader, blocks, facts, leases), numbers, control)
        with memory_told(config):
            shard.make()
        for mode in facts:
            write_shard_tables(directory, mode, modality, (numbers.start, numbers.stop))
        control.beat(shard.total, shard.total, "image")
        if leases is not None:
            help_others(shard.maker, numbers, lambda helped: shard.tell(helped=helped))
    if shard.failed:
        raise NoProgress(_exhausted(list(shard.failed)))


@dataclass
class _Shard:
    """A task's own blocks, and how far it is."""

    maker: BlockMaker
    numbers: range
    control: Control
    done: int = 0  # images, all modes
    failed: dict[str, None] = field(default_factory=dict)  # prompt ids, in order and once

    @cached_property
    def total(self) -> int:
        """Images of all modes."""
        return len(self.maker.facts) * self.maker.blocks.count_items(self.numbers)

    def make(self) -> None:
        """All blocks, mode by mode; those that other tasks are at work on in the end, by waiting for them."""
        left = [(mode, number) for mode in self.maker.facts for number in self.numbers]
        while True:
            with Writer() as writer:
                left = [place for place in left if not self._settle(place, writer)]
            if not left:
                return
            self.tell()
            time.sleep(WAIT_SECONDS)

    def _settle(self, place: Place, writer: Writer) -> bool:
        failed = self.maker.settle(place, writer, self.tell)
        if failed is None:
            return False
        self.failed |= dict.fromkeys(failed)
        self.done += self.maker.blocks.count_items([place[1]])
        return True

    def tell(self, settled: int = 0, **numbers: int) -> None:
        """Between batches: say how far the task is, and leave if asked to."""
        self.control.leave_if_asked()  # costs nothing: what is painted is in the journal
        self.control.beat(self.done + settled, self.total, "image", **numbers)


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
