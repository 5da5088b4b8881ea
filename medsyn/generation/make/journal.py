"""The finished batches of an unfinished block, which a killed task need not sample again.

One file per batch beside the block, each written whole. The journal is removed once the block is committed. It proves
nothing by itself: a file counts only if it was made for the same items, models and settings, and for the same places.
Two processes that make the same block write the same batches, so neither harms the other's journal.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medsyn import disk
from medsyn.generation.filter import Candidate
from medsyn.generation.sample.batch import Batch

Places = Sequence[tuple[int, int]]  # (position of the item in its block, attempt)


def journal_directory(block: Path) -> Path:
    """The directory of a block's journal; hidden, so that readers of blocks ignore it."""
    return block.with_name(f".{block.name}.journal")


@dataclass(frozen=True)
class Journal:
    """The journal of one block; `identity` is the fingerprint of all that its images depend on."""

    block: Path
    identity: str

    def _file(self, number: int) -> Path:
        return journal_directory(self.block) / f"batch-{number:06d}.npz"

    def append(self, number: int, places: Places, batch: Batch) -> None:
        """Save batch `number`; from here on it survives a kill and a power cut."""
        record = {
            "identity": self.identity,
            "places": [list(place) for place in places],
            "candidates": [asdict(candidate) for candidate in batch.candidates],
            "unet_evaluations": batch.unet_evaluations,
            "seconds": batch.seconds,
            "device": batch.device,
        }
        stream = io.BytesIO()
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        np.savez(stream, record=text, pictures=np.stack(batch.pictures))
        try:
            disk.write_atomic(self._file(number), stream.getvalue())
        except OSError as error:  # another process has committed the block and removed the journal
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise

    def batch(self, number: int, places: Places) -> Batch | None:
        """Batch `number` if it was saved and is exactly the one needed now, else None."""
        try:
            with np.load(self._file(number), allow_pickle=False) as kept:
                record = json.loads(kept["record"].tobytes())
                pictures = kept["pictures"]
            if record["identity"] != self.identity or record["places"] != [list(place) for place in places]:
                return None
            candidates = [Candidate(**candidate) for candidate in record["candidates"]]
            return Batch(candidates, list(pictures), record["unet_evaluations"], record["seconds"], record["device"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def remove(self) -> None:
        """Remove the journal: the block is committed."""
        shutil.rmtree(journal_directory(self.block), ignore_errors=True)
