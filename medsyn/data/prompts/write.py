"""From the rows of a prompt list to the files that the tasks read, in two passes and bounded memory.

The first pass counts and hashes the runs, which is all that a plan needs; the second knows from it where in the file
each run begins, and writes every line to its place.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from medsyn import disk
from medsyn.data.prompts.formats import INDEX
from medsyn.data.prompts.rows import PromptRow, PromptSource, Scalar
from medsyn.data.prompts.store import LINES_PER_OFFSET, ListIndex, Run, damage, list_file
from medsyn.data.tables.row_errors import Faults
from medsyn.errors import InputError
from medsyn.modality_names import in_order

_BUFFERED_BYTES = 8 << 20

_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_Settings = tuple[int | None, bool | None]  # of a run


@dataclass
class _Count:
    """A run so far."""

    plain: int = 0
    counted: int = 0
    images: int = 0
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, row: PromptRow, line: bytes) -> None:
        if row.n is None:
            self.plain += 1
        else:
            self.counted += 1
            self.images += row.n
        self.size += len(line)
        self.digest.update(line)

    def run(self, settings: _Settings) -> Run:
        return Run(*settings, self.plain, self.counted, self.images, self.size, self.digest.hexdigest())


def index_rows(rows: Iterable[PromptRow]) -> ListIndex:
    """Read all of `rows` and count them."""
    counts: dict[str, dict[_Settings, _Count]] = defaultdict(lambda: defaultdict(_Count))
    for row in rows:
        counts[row.modality][_settings(row)].add(row, _line(row))
    return ListIndex(
        {
            modality: tuple(counts[modality][key].run(key) for key in sorted(counts[modality], key=_order))
            for modality in in_order(counts)
        }
    )


def write_lists(rows: Iterable[PromptRow], index: ListIndex, directory: Path) -> None:
    """Write the lists that `index` describes to `directory`, unless they are there already, undamaged.

    Anything else there is replaced once everything is written, because `rows` may come from it.

    Raises:
        InputError: the rows are not those that were counted.
    """
    content = index.text()
    path = directory / INDEX
    if path.is_file() and path.read_text() == content and damage(directory, hashes=True) is None:
        return
    fresh = directory.with_name(f"{directory.name}.new")
    disk.sweep_temporaries(disk.make_directory(directory.parent), of=fresh.name)
    disk.remove(fresh)
    with disk.atomic_directory(fresh) as temporary:
        with ExitStack() as stack:
            writers = {
                modality: _Writer(stack.enter_context(list_file(temporary, modality).open("wb")), runs)
                for modality, runs in index.modalities.items()
            }
            for row in rows:
                if row.modality not in writers or not writers[row.modality].add(row):
                    raise InputError(directory, "the prompt list changed while it was being read: try again")
            for modality, writer in writers.items():
                list_file(temporary, modality).with_suffix(".offsets").write_bytes(writer.finish())
        (temporary / INDEX).write_text(content)
        if damage(temporary, hashes=True):
            raise InputError(directory, "the prompt list changed while it was being read: try again")
    disk.remove(directory)
    fresh.rename(directory)
    disk.fsync_directory(directory.parent)


def resolve(source: PromptSource, faults: Faults, directory: Path) -> ListIndex:
    """Make both passes over a list; return the index of what `directory` then contains."""
    index = index_rows(source.rows(faults))
    write_lists(source.rows(Faults(source.name)), index, directory)
    return index


def _settings(row: PromptRow) -> _Settings:
    return row.num_inference_steps, None if row.guidance_scale is None else row.guidance_scale != 1


def _order(settings: _Settings) -> tuple[tuple[bool, float], ...]:
    return tuple((value is not None, value or 0) for value in settings)


def _line(row: PromptRow) -> bytes:
    """The row as its line in the file, which is a valid prompt list itself."""
    known: dict[str, Scalar] = {"id": row.prompt_id, "prompt": row.prompt, "modality": row.modality}
    optional = {
        "n": row.n,
        "seed": row.seed,
        "num_inference_steps": row.num_inference_steps,
        "guidance_scale": row.guidance_scale,
        "negative_prompt": row.negative_prompt,
    }
    known |= {column: value for column, value in optional.items() if value is not None}
    return (_to_json(known | dict(row.extra)) + "\n").encode()


@dataclass
class _Cursor:
    """How far a run has been written."""

    run: Run
    offset: int  # bytes of the file that the next buffer goes to
    lines: int  # of the whole file before the next line
    plain: int
    images: int
    written: int = 0  # lines of the run
    entries: array[int] = field(default_factory=lambda: array("Q"))
    buffer: bytearray = field(default_factory=bytearray)


class _Writer:
    """The file of one modality."""

    def __init__(self, stream: BinaryIO, runs: tuple[Run, ...]) -> None:
        self._stream = stream
        self._buffered = 0
        self._cursors: dict[_Settings, _Cursor] = {}
        offset = lines = plain = images = 0
        for run in runs:
            self._cursors[run.num_inference_steps, run.guided] = _Cursor(run, offset, lines, plain, images)
            offset, lines = offset + run.size, lines + run.prompts
            plain, images = plain + run.plain, images + run.images

    def add(self, row: PromptRow) -> bool:
        """Add a row; False if its run has no room for it."""
        cursor = self._cursors.get(_settings(row))
        if cursor is None or cursor.written == cursor.run.prompts:
            return False
        if cursor.written % LINES_PER_OFFSET == 0:
            cursor.entries.extend((cursor.offset + len(cursor.buffer), cursor.lines, cursor.plain, cursor.images))
        line = _line(row)
        cursor.buffer += line
        cursor.written += 1
        cursor.lines += 1
        cursor.plain += row.n is None
        cursor.images += row.n or 0
        self._buffered += len(line)
        if self._buffered > _BUFFERED_BYTES:
            self._flush()
        return True

    def finish(self) -> bytes:
        """Write what is left; return the content of the offsets file."""
        self._flush()
        return b"".join(cursor.entries.tobytes() for cursor in self._cursors.values())

    def _flush(self) -> None:
        for cursor in self._cursors.values():
            if cursor.buffer:
                self._stream.seek(cursor.offset)
                self._stream.write(cursor.buffer)
                cursor.offset += len(cursor.buffer)
                cursor.buffer = bytearray()
        self._buffered = 0
