"""Blocks of one mode, made together: batches are packed over all of them, retries with the next first attempts.

An image does not depend on the others in its batch, so neither does any file depend on the packing. Blocks are opened
in order and only when those that are open cannot fill a batch; so few are open at a time, and only at the end are there
places for attempts that may not be needed.

On a GPU a batch is begun before the one before it is read back, scored and judged. It is planned without those
verdicts: of attempts that are needed whatever they will be. Where there are not enough of them to fill it, verdicts are
waited for; so no place is lost by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from medsyn import time_use
from medsyn.generation.filter import Trial, next_batch
from medsyn.generation.make.block import Order, Progress
from medsyn.generation.make.journal import Journal, Places
from medsyn.generation.make.writer_thread import Writer
from medsyn.generation.sample.batch import Batch, Begun, ImageSampler, Recipe


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

    batches = _Batches(opened, sampler, writer)
    with batches.kept():
        while True:
            seats = _next_batch(opened, further, sampler.recipe.batch_size, batches.is_under_way)
            if not seats and batches.is_under_way:
                batches.read_back()
                continue
            for block in [block for block in opened if block.progress.settled]:
                opened.remove(block)
                writer.submit(partial(commit, block))
                yield block
            if not seats:
                return
            before_batch()
            if all(block in opened for (block, _), _ in seats):
                batches.make(seats)


def _next_batch(
    opened: list[OpenBlock], further: Iterator[OpenBlock], size: int, is_under_way: bool
) -> list[tuple[Seat, int]]:
    """The (item, attempt) of the next batch; opens as many blocks as that takes."""
    seats: list[Seat] = []

    def trials() -> Iterator[Trial]:
        for block in _growing(opened, further):
            for position, trial in enumerate(block.progress.trials):
                seats.append((block, position))
                yield trial

    return [(seats[number], attempt) for number, attempt in plan_batch(trials(), size, is_under_way)]


def plan_batch(trials: Iterable[Trial], size: int, is_under_way: bool) -> list[tuple[int, int]]:
    """`next_batch`; while another batch is under way, only one that is full of attempts that are needed anyway.

    Args:
        trials: one per item; read only until the batch is full.
        size: places in a batch.
        is_under_way: whether a batch has been begun and not been judged.
    """
    seen: list[Trial] = []

    def watched() -> Iterator[Trial]:
        for trial in trials:
            seen.append(trial)
            yield trial

    batch = next_batch(watched(), size)
    if not is_under_way:
        return batch
    needed = [attempt < seen[number].next_attempts.start + seen[number].still_needed for number, attempt in batch]
    return batch if len(batch) == size and all(needed) else []


def _trial(seat: Seat) -> Trial:
    block, position = seat
    return block.progress.trials[position]


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


class _Batches:
    """Samples batches and deals them to their blocks; on a GPU one is begun before the one before it is read back."""

    def __init__(self, opened: Sequence[OpenBlock], sampler: ImageSampler, writer: Writer) -> None:
        """Begin none.

        Args:
            opened: the blocks that are being made; what is made for others is thrown away.
            sampler: what samples.
            writer: saves what has been read back.
        """
        self._opened, self._sampler, self._writer = opened, sampler, writer
        self._begun: tuple[Begun, Sequence[tuple[Seat, int]]] | None = None
        self._read = 0.0  # when the last one had been read back

    @property
    def is_under_way(self) -> bool:
        """Whether a batch has been begun and not been read back."""
        return self._begun is not None

    def make(self, seats: Sequence[tuple[Seat, int]]) -> None:
        """Make a batch of these items and attempts, or begin it where the one before it is read back meanwhile."""
        wanted = [(block.progress.order.items[position], attempt) for (block, position), attempt in seats]
        if not self._sampler.overlaps:
            return self._deal(self._sampler.sample(wanted), seats)
        begun = self._sampler.begin(wanted, self.read_back)
        self.read_back()  # if that had too few steps
        for seat, _ in seats:
            _trial(seat).under_way += 1
        self._begun = begun, seats

    def read_back(self) -> None:
        """Wait for the batch that is under way, if one is, and deal it to its blocks."""
        if self._begun is None:
            return
        (begun, seats), self._begun = self._begun, None
        with time_use.of(time_use.OTHER):
            made = begun.finish()
            now = time.perf_counter()
            made = replace(made, seconds=min(made.seconds, now - self._read))  # seconds count once
            self._read = now
            for seat, _ in seats:
                _trial(seat).under_way -= 1
            self._deal(made, seats)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What is under way is read back if an error or a stop ends this."""
        try:
            yield
        except Exception:
            with suppress(Exception):  # the first error is the one to tell
                self.read_back()
            raise

    def _deal(self, made: Batch, seats: Sequence[tuple[Seat, int]]) -> None:
        """Hand every block its part of a batch, and have it written."""
        made = replace(made, device=self._sampler.device_name)
        places: dict[OpenBlock, list[tuple[int, int]]] = {}
        for (block, position), attempt in seats:
            places.setdefault(block, []).append((position, attempt))
        parts = dict(zip(places, made.split([block for (block, _), _ in seats]), strict=True))
        mine = [block for block in places if block in self._opened]
        settled = {block: block.progress.take(places[block], parts[block]) for block in mine}
        winners = [block.progress.trials[place].winner for block in mine for place in settled[block]]
        time_use.count(places=self._sampler.recipe.batch_size, used=sum(winner is not None for winner in winners))
        kept = time_use.mark()

        def write() -> None:
            for block in mine:
                block.write(places[block], parts[block], settled[block])
            kept()

        self._writer.submit(write)
