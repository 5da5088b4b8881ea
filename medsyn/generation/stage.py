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

from medsyn import disk, host_memory, time_use
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
from medsyn.models.device import choose_device
from medsyn.models.weights import locate
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


_preloaded: dict[tuple[Path, str], BlockMaker] = {}  # by campaign and modality


def preload(config: Config, task: Task, directory: CampaignDirectory) -> None:
    """Load the models of a task for forks of this process that compute on a CPU: they share them.

    A task takes them only if it would load the same. If they take more than a quarter of the memory that is free, it
    loads them itself.

    Args:
        config: the campaign's.
        task: any of those of its modality.
        directory: the campaign's.

    Raises:
        InputError: something is missing.
    """
    modality = task.modality
    assert modality is not None, "a generate task has a modality"
    key = directory.root, modality
    size = len({arm.weights for arm in config.arms}) * _weights_bytes(config)
    for other in [other for other in _preloaded if other != key]:
        if not _has_room(size):
            del _preloaded[other]
    if key not in _preloaded and _has_room(size):
        maker = _new_maker(_on_one_thread(config), modality, directory)
        maker.load()
        _preloaded[key] = maker


def _on_one_thread(config: Config) -> Config:
    """The configuration for a process that is forked, which has no GPU and no second thread."""
    device = config.device.model_copy(update={"use_cuda": False, "cpu_threads": 1})
    return config.model_copy(update={"device": device})


def _weights_bytes(config: Config) -> int:
    base = locate(config.model_paths.stable_diffusion)
    return 0 if base is None else sum(file.stat().st_size for file in base.rglob("*.safetensors"))


def _has_room(size: int) -> bool:
    free = host_memory.available()
    return free is not None and size <= free / 4


def _maker(config: Config, modality: str, directory: CampaignDirectory, control: Control) -> BlockMaker:
    """What makes the modality's blocks, with models that are loaded already if they will do.

    They may be those of this process's task before, or of the process that it is a fork of.
    """
    kept = control.kept.get("maker")
    if isinstance(kept, BlockMaker) and kept.config is config and kept.loader.modality == modality:
        return kept
    with time_use.of(time_use.LOADING):
        maker = _new_maker(config, modality, directory, _preloaded.get((directory.root, modality)))
    control.kept["maker"] = maker
    return maker


def _new_maker(
    config: Config, modality: str, directory: CampaignDirectory, preloaded: BlockMaker | None = None
) -> BlockMaker:
    loader = Loader(config, modality, directory)
    facts: dict[str, dict[str, Any]] = {mode: loader.facts(mode) for mode in config.generation.modes}
    same = preloaded is not None and preloaded.facts == facts and preloaded.config == _on_one_thread(config)
    if preloaded is not None and same and choose_device(config.device).device.type == "cpu":
        return preloaded.of(config, loader)
    return BlockMaker(config, loader, read_blocks(config, modality), facts)


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
