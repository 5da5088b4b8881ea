"""The sampled candidates of an unfinished block, which a killed task need not sample again.

One file beside the block for its part of each batch, written whole. The journal is removed once the block is
committed. It proves nothing by itself: a file counts only if it was made for the same items, models and settings, and
if its checksum is right, so that nothing need wait for the disk: a power cut costs what the system had not written yet,
half a minute on most machines. A
candidate does not depend on the others in its batch, so a successor may pack the rest differently; of two processes
that make the same block at once neither harms the other's journal by more than the time to sample again.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsyn import disk
from medsyn.generation.filter import Candidate
from medsyn.generation.sample.batch import Batch

Places = Sequence[tuple[int, int]]  # (position of the item in its block, attempt)


def journal_directory(block: Path) -> Path:
    """The directory of a block's journal; hidden, so that readers of blocks ignore it."""
    return block.with_name(f".{block.name}.journal")


@dataclass
class Journal:
    """The journal of one block; `identity` is the fingerprint of all that its images depend on."""

    block: Path
    identity: str
    _next: int = 0

    def append(self, places: Places, batch: Batch) -> None:
        """Save the block's part of a batch; from here on it survives a kill, and soon a power cut."""
        record = {
            "identity": self.identity,
            "places": [list(place) for place in places],
            "candidates": [vars(candidate) for candidate in batch.candidates],
            "unet_evaluations": batch.unet_evaluations,
            "seconds": batch.seconds,
            "device": batch.device,
            "share": batch.share,
        }
        stream = io.BytesIO()
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        np.savez(stream, record=text, pictures=np.stack(batch.pictures))
        file = journal_directory(self.block) / f"batch-{self._next:06d}.npz"
        self._next += 1
        try:
            disk.write_unsynced(file, stream.getbuffer())
        except OSError as error:  # another process has committed the block and removed the journal
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise

    def read(self) -> Iterator[tuple[Places, Batch]]:
        """What is usable of what was saved before this process; files appended from now on are new ones."""
        files = sorted(journal_directory(self.block).glob("batch-*.npz"))
        for file in files:
            if (part := self._part(file)) is not None:
                yield part
        self._next = len(files) and 1 + max(_number(file) for file in files)

    def _part(self, file: Path) -> tuple[Places, Batch] | None:
        try:
            with np.load(file, allow_pickle=False) as kept:
                record = disk.from_json(kept["record"].tobytes())
                pictures = list(kept["pictures"])
            if record["identity"] != self.identity:
                return None
            places = [(int(position), int(attempt)) for position, attempt in record["places"]]
            candidates = [Candidate(**candidate) for candidate in record["candidates"]]
            spent = record["unet_evaluations"], record["seconds"], record["device"], record["share"]
            is_whole = len(places) == len(candidates) == len(pictures)
            return (places, Batch(candidates, pictures, *spent)) if is_whole else None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def remove(self) -> None:
        """Remove the journal: the block is committed."""
        shutil.rmtree(journal_directory(self.block), ignore_errors=True)


def _number(file: Path) -> int:
    digits = file.stem.removeprefix("batch-")
    return int(digits) if digits.isdecimal() else 0
