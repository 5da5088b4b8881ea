"""What a task does when its own blocks are made: it helps the other tasks of its modality (`cluster.claim`).

A helper takes blocks that nobody is at work on, never waits, and never fails: its own part is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from medsyn.generation.background import Writer
from medsyn.generation.journal import journal_directory
from medsyn.generation.lease import lease_file
from medsyn.generation.maker import BlockMaker, Place
from medsyn.stage import Saved

_log = logging.getLogger(__name__)


def help_others(maker: BlockMaker, own: range, tell: Callable[[int], None]) -> int:
    """Make blocks outside of `own` until there is none left that is missing and has no lease.

    Args:
        maker: makes them.
        own: the numbers of the task's own blocks.
        tell: called before each block and each batch with the number of blocks made so far; may raise Saved, which ends
            the help: what is painted is in the block's journal, for whoever makes the block.

    Returns:
        How many blocks were made or found made.
    """
    helped = 0

    def before_batch(settled: int) -> None:
        tell(helped)

    try:
        while True:
            before = helped
            with Writer() as writer:
                for place in unsettled(maker, own):
                    tell(helped)
                    helped += maker.settle(place, writer, before_batch) is not None
            if helped == before:
                return helped
    except Saved:
        _log.info("asked to leave while helping other tasks; the task's own blocks are all there")
    except Exception as error:  # whoever owns the block will meet it too, and tell
        _log.warning("stopped helping other tasks: %s: %s", type(error).__name__, error)
    return helped


def unsettled(maker: BlockMaker, own: range) -> Iterator[Place]:
    """The blocks outside of `own` that are missing, or have something left beside them.

    Downwards from `own`, then down from the last: so each helper begins at the far end of another task's blocks,
    whose owner works upwards.
    """
    numbers = [*range(own.start - 1, -1, -1), *range(maker.blocks.count - 1, own.stop - 1, -1)]
    for mode in maker.modes:
        names: dict[Path, set[str]] = {}  # what is in a folder of blocks; by now some of it has changed
        for number in numbers:
            block = maker.block((mode, number))
            folder = block.parent
            if folder not in names:
                names[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            left = {lease_file(block).name, journal_directory(block).name} & names[folder]
            if left or block.name not in names[folder]:
                yield mode, number
