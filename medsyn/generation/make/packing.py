"""Blocks of one mode, made together: batches are packed over all of them, retries with the next first attempts.

An image does not depend on the others in its batch, so neither does any file depend on the packing. Blocks are opened
in order and only when those that are open cannot fill a batch; so few are open at a time, and only at the end are there
places for attempts that may not be needed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from medsyn import time_use
from medsyn.generation.filter import Trial, next_batch
from medsyn.generation.make.block import Order, Progress
from medsyn.generation.make.journal import Journal, Places
from medsyn.generation.make.writer_thread import Writer
from medsyn.generation.sample.batch import Batch, ImageSampler, Recipe


@dataclass(frozen=True, eq=False)
class OpenBlock:
    """A block that is being made, and its journal."""

    progress: Progress
    journal: Journal

    @classmethod
    def open(cls, order: Order, recipe: Recipe, writer: Writer) -> OpenBlock:
        """Begin a block, or go on where its journal ends; `writer` encodes what that has settled."""
        progress, journal = Progress.begin(order, recipe), Journal(order.path, order.identity)
        if settled := progress.resume(journal.read()):
            writer.submit(partial(progress.publish, settled))
        return cls(progress, journal)

    def write(self, places: Places, part: Batch, settled: Sequence[int]) -> None:
        """Save the block's part of a batch and encode what it settled; runs on the writing thread."""
        self.journal.append(places, part)
        self.progress.publish(settled)


Seat = tuple[OpenBlock, int]  # an item: its block, and its position there


def make_blocks(
    opened: list[OpenBlock],
    further: Iterator[OpenBlock],
    sampler: ImageSampler,
    writer: Writer,
    before_batch: Callable[[], None] = lambda: None,
    committed: Callable[[OpenBlock], None] = lambda block: None,
) -> Iterator[OpenBlock]:
    """Sample blocks and hand them to `writer`, which commits each as soon as all its items are settled.

    Args:
        opened: the blocks that are being made; kept up to date. `before_batch` may take blocks out, which are given up.
        further: opens the next block; asked only when a batch has room for it.
        sampler: what samples them.
        writer: encodes and writes during sampling. All blocks are on disk when it is closed.
        before_batch: called before each batch; may raise to stop. What has been sampled is in the journals by the time
            `writer` is closed.
        committed: called on the writing thread when a block is on disk and its journal is gone.

    Yields:
        Every block that is settled, as it is handed to `writer`.
    """

    def commit(block: OpenBlock) -> None:
        block.progress.commit(sampler.device_name, block.journal)
        committed(block)

    while True:
        batch = _next_batch(opened, further, sampler.recipe.batch_size)
        for block in [block for block in opened if block.progress.settled]:
            opened.remove(block)
            writer.submit(partial(commit, block))
            yield block
        if not batch:
            return
        before_batch()
        if all(block in opened for (block, _), _ in batch):
            _sample(batch, sampler, writer)


def _next_batch(opened: list[OpenBlock], further: Iterator[OpenBlock], size: int) -> list[tuple[Seat, int]]:
    """The (item, attempt) of the next batch; opens as many blocks as that takes."""
    seats: list[Seat] = []

    def trials() -> Iterator[Trial]:
        for block in _growing(opened, further):
            for position, trial in enumerate(block.progress.trials):
                seats.append((block, position))
                yield trial

    return [(seats[number], attempt) for number, attempt in next_batch(trials(), size)]


def _growing(opened: list[OpenBlock], further: Iterator[OpenBlock]) -> Iterator[OpenBlock]:
    """The open blocks, then further ones, which it opens; none behind one that has nothing of the batch's kind."""
    yield from list(opened)
    while _may_share(opened) and (block := next(further, None)) is not None:
        opened.append(block)
        yield block


def _may_share(opened: Sequence[OpenBlock]) -> bool:
    """Whether the newest block has something of the kind of the next batch, so that the one behind it may have too."""
    unsettled = (trial.kind for block in opened for trial in block.progress.trials if not trial.settled)
    kind: Hashable = next(unsettled, None)
    return kind is None or any(trial.kind == kind for trial in opened[-1].progress.trials)


def _sample(batch: Sequence[tuple[Seat, int]], sampler: ImageSampler, writer: Writer) -> None:
    """Sample a batch and deal it to its blocks."""
    wanted = [(block.progress.order.items[position], attempt) for (block, position), attempt in batch]
    made = replace(sampler.sample(wanted), device=sampler.device_name)
    places: dict[OpenBlock, list[tuple[int, int]]] = {}
    for (block, position), attempt in batch:
        places.setdefault(block, []).append((position, attempt))
    parts = made.split([block for (block, _), _ in batch])
    settled = [block.progress.take(mine, part) for (block, mine), part in zip(places.items(), parts, strict=True)]
    winners = [
        block.progress.trials[place].winner for block, mine in zip(places, settled, strict=True) for place in mine
    ]
    time_use.count(places=sampler.recipe.batch_size, used=sum(winner is not None for winner in winners))
    kept = time_use.mark()

    def write() -> None:
        for (block, mine), part, positions in zip(places.items(), parts, settled, strict=True):
            block.write(mine, part, positions)
        kept()

    writer.submit(write)
