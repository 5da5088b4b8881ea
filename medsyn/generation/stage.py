"""The stage `generate`: one shard's blocks of one modality, in every mode, each block committed whole.

Existing blocks are left alone, so the files are the same whatever the shards, the order and the interruptions.

Work stealing (`cluster.claim`): a task that has made its own blocks makes those of other tasks of its modality. It
takes blocks that no task is working on, never waits, and never fails: its own part is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from medsyn import disk, time_use
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.generation.block_store import read_blocks
from medsyn.generation.make.journal import journal_directory
from medsyn.generation.make.maker import BlockMaker, Place, Work, sweep
from medsyn.generation.make.writer_thread import Writer
from medsyn.generation.sample.load import Loader
from medsyn.generation.write.parquet import write_shard_tables
from medsyn.generation.write.provenance import ENVIRONMENT_FILE, require_same_environment
from medsyn.lease import Leases, lease_file
from medsyn.stage import CampaignDirectory, Control, NoProgress, Saved, Task
from medsyn.text import and_more

# What writing the shard's tables imports (Arrow asks whether a list is pandas'), for the process that is forked.
IMPORTED_LATE = ("pyarrow.parquet", "pandas", "PIL.PngImagePlugin")
WAIT_SECONDS = 1.0  # between two looks at blocks that other tasks are working on

_log = logging.getLogger(__name__)


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Make the blocks `task.blocks` of `task.modality` that do not exist yet, mode by mode.

    Raises:
        InputError: an earlier stage's result is missing, blocks of other settings are in the way, or a batch does
            not fit into the device's memory.
        NoProgress: prompts spent their attempts and `on_exhausted` is `fail`; their blocks are on disk nevertheless.
        Saved: a stop was requested; every sampled batch is on disk.
    """
    modality = task.modality
    assert modality is not None, "a generate task has a modality"
    maker = _maker(config, modality, directory, control)
    blocks, facts = maker.blocks, maker.facts
    numbers = range(*(task.blocks or (0, blocks.count)))
    if numbers.stop > blocks.count:
        reason = f"has {blocks.count} blocks of {modality}, but the task was planned for {numbers.stop}: plan again"
        raise InputError(str(config.data.prompts), reason)
    made_with = directory.work("generate", ENVIRONMENT_FILE)
    disk.sweep_temporaries(made_with.parent)
    for its in facts.values():
        require_same_environment(made_with, its, keep=False)
    for mode in facts:  # never later: the task may be running a second time by then
        disk.sweep_temporaries(directory.shard(mode, modality, (numbers.start, numbers.stop)))
        if not config.cluster.claim:
            sweep([directory.block(mode, modality, number) for number in numbers])
    with Leases(task.name) if config.cluster.claim else nullcontext() as leases:
        maker.leases = leases
        shard = _Shard(maker, numbers, control)
        with memory_told(config):
            shard.make()
        with time_use.of(time_use.WRITING):
            for mode in facts:
                write_shard_tables(directory, mode, modality, (numbers.start, numbers.stop))
        worked = shard.total - shard.work.found
        control.heartbeat(shard.total, shard.total, "image", worked=worked, accepted=shard.work.accepted)
        if leases is not None:
            help_others(shard.maker, numbers, lambda helped: shard.tell(helped=helped))
    if shard.work.failed:
        raise NoProgress(_exhausted(list(shard.work.failed)))


def _maker(config: Config, modality: str, directory: CampaignDirectory, control: Control) -> BlockMaker:
    """What makes the modality's blocks; that of this process's task before, with its models, if it will do."""
    kept = control.kept.get("maker")
    if isinstance(kept, BlockMaker) and kept.config is config and kept.loader.modality == modality:
        return kept
    loader = Loader(config, modality, directory)
    with time_use.of(time_use.LOADING):
        facts: dict[str, dict[str, Any]] = {mode: loader.facts(mode) for mode in config.generation.modes}
    control.kept["maker"] = maker = BlockMaker(config, loader, read_blocks(config, modality), facts)
    return maker


@dataclass
class _Shard:
    """A task's own blocks and its progress."""

    maker: BlockMaker
    numbers: range
    control: Control
    work: Work = field(default_factory=Work)

    @cached_property
    def total(self) -> int:
        """Images of all modes."""
        return len(self.maker.facts) * self.maker.blocks.count_items(self.numbers)

    def make(self) -> None:
        """Make all blocks, first in the mode whose models are loaded, waiting at the end for those of other tasks."""
        left = [(mode, number) for mode in self.maker.modes for number in self.numbers]
        while True:
            with Writer() as writer:
                self.maker.make(left, writer, self.work, self.tell)
            left, self.work.left = self.work.left, []
            if not left:
                return
            self.tell()
            with time_use.of(time_use.WAITING):
                time.sleep(WAIT_SECONDS)

    def tell(self, **numbers: Any) -> None:
        """Between batches: report progress, and leave if a stop was requested; no rate while others are helped."""
        self.control.leave_if_asked()  # costs nothing: sampled batches are in the journals
        done = self.work.images
        worked = None if numbers else done - self.work.found
        self.control.heartbeat(done, self.total, "image", worked=worked, accepted=self.work.accepted, **numbers)


@contextmanager
def memory_told(config: Config) -> Iterator[None]:
    """Report what to set if a batch does not fit; the batch size is never changed behind the user's back."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        size = config.generation.images_per_batch
        reason = f"a batch of {size} does not fit into the GPU's memory ({str(error).splitlines()[0]})"
        way_out = f"set it to {size // 2}" if size > 1 else "lower data.resolution"
        raise InputError("configuration", f"{reason}: {way_out}", key="generation.batch_size") from None


def _exhausted(prompt_ids: Sequence[str]) -> str:
    named = and_more(prompt_ids, 10)
    return f"no acceptable image after generation.max_attempts for prompts {named} (generation.on_exhausted is 'fail')"


def help_others(maker: BlockMaker, own: range, tell: Callable[[int], None]) -> int:
    """Steal work: make blocks outside `own` until none is left that is missing and has no lease.

    Args:
        maker: makes them.
        own: the numbers of the task's own blocks.
        tell: called before each block and each batch with the number of blocks made so far; may raise Saved, which ends
            the work stealing: sampled batches are in the block's journal, for the task that makes the block.

    Returns:
        How many blocks were made, or found already made.
    """
    work = Work()

    def places() -> Iterator[Place]:
        for place in unsettled(maker, own):
            tell(work.blocks)
            yield place

    try:
        while True:
            before = work.blocks
            with Writer() as writer:
                maker.make(places(), writer, work, lambda: tell(work.blocks))
            if work.blocks == before:
                break
    except Saved:
        _log.info("asked to stop while work stealing; the task's own blocks are all done")
    except Exception as error:  # the block's own task will meet it too, and report it
        _log.warning("stopped work stealing: %s: %s", type(error).__name__, error)
    return work.blocks


def unsettled(maker: BlockMaker, own: range) -> Iterator[Place]:
    """The blocks outside `own` that are missing, or have something left beside them.

    Downwards from `own`, then down from the last: so work stealing begins at the far end of another task's blocks,
    while their owner works upwards.
    """
    numbers = [*range(own.start - 1, -1, -1), *range(maker.blocks.count - 1, own.stop - 1, -1)]
    for mode in maker.modes:
        names: dict[Path, set[str]] = {}  # what is in a directory of blocks; some of it may have changed since
        for number in numbers:
            block = maker.block((mode, number))
            folder = block.parent
            if folder not in names:
                names[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            left = {lease_file(block).name, journal_directory(block).name} & names[folder]
            if left or block.name not in names[folder]:
                yield mode, number
