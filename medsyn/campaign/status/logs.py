"""Task output: which file it is in, its last lines, and following it while it grows."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from medsyn.campaign.slurm.submissions import Submission
from medsyn.campaign.tasks import Key
from medsyn.stage import CampaignDirectory

_PIECE = 64 << 10  # bytes


def last_lines(path: Path, count: int) -> list[str]:
    """The last non-empty lines of a log."""
    return [line for line in tail(path, 4 * count) if line.strip()][-count:]


def tail(path: Path, count: int, end: int | None = None) -> list[str]:
    """The last lines of a file (of its first `end` bytes), read from there backwards; none if it cannot be read."""
    content = b""
    try:
        with path.open("rb") as stream:
            left = stream.seek(0, os.SEEK_END) if end is None else end
            while left > 0 and content.count(b"\n") <= count:
                step = min(_PIECE, left)
                left -= step
                stream.seek(left)
                content = stream.read(step) + content
    except OSError:
        return []
    return content.decode(errors="replace").splitlines()[-count:]


def find(log: Path, batch: Sequence[Path]) -> Path | None:
    """The file with a task's output: its own log or, if that is empty, the newest that Slurm wrote."""
    if _has_content(log):
        return log
    said = [path for path in batch if _has_content(path)]
    return said[-1] if said else log if log.is_file() else None


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def batch_logs(directory: CampaignDirectory, submitted: Iterable[Submission]) -> dict[Key, list[Path]]:
    """submitit's files of each task's jobs, oldest job first, standard error last: srun's complaints are there."""
    found: dict[Key, list[Path]] = {}
    for submission in submitted:
        folder = directory.slurm(submission.name)
        for identity, key in submission.elements():
            found.setdefault(key, []).extend(folder / f"{identity}_0_log.{end}" for end in ("out", "err"))
    return found


def follow(
    where: Callable[[], Path | None], is_over: Callable[[], bool], wait: Callable[[], None], position: int = 0
) -> Iterator[str]:
    """What is appended to a file behind `position`; a file that is replaced or cut is read from its start.

    Args:
        where: the file, or None while there is none; asked again and again.
        is_over: whether nothing more will come; what was written before it says so is still read.
        wait: called between two looks.
        position: in bytes, of the file that is there now.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a look may end within a letter
    path = where()
    identity = path.stat().st_ino if path else None
    while True:
        over = is_over()
        path = where()
        if path is not None:
            with path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                if found.st_ino != identity or found.st_size < position:
                    position, identity = 0, found.st_ino
                stream.seek(position)
                content = stream.read()
            position += len(content)
            if text := decoder.decode(content):
                yield text
        if over:
            return
        wait()
