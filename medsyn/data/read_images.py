"""Reads the images that tables name, on several threads, and each once as long as its file stays as it is."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from medsyn.data import known_images
from medsyn.data.contents import ImageKey, Picture
from medsyn.data.images.read import read_image
from medsyn.data.known_images import FileState, Seen
from medsyn.errors import InputError, Problem

Progress = Callable[[int, int], None]  # images read, of how many

_MOST_THREADS = 4  # decoders release the interpreter's lock, but Python between them does not; and each holds a picture
_AT_ONCE = 1024  # images that are given to the threads together
_SAVE_SECONDS = 300.0


@dataclass(frozen=True)
class Limit:
    """The most that is read at once; files that are known already do not count."""

    images: int
    bytes: int


@dataclass
class Found:
    """What the images are, and what is wrong with those that cannot be used."""

    states: dict[ImageKey, FileState]  # of regular files
    seen: dict[ImageKey, Seen] = field(default_factory=dict)
    refused: dict[ImageKey, list[Problem]] = field(default_factory=dict)
    unread: int = 0  # all the images that were not known, if they are over the limit

    @property
    def pictures(self) -> dict[ImageKey, Picture]:
        """What the images are that could be used."""
        return {image: seen.picture for image, seen in self.seen.items()}


def read_images(
    by_table: Mapping[Path, Sequence[ImageKey]], progress: Progress | None = None, limit: Limit | None = None
) -> Found:
    """Read what is not known, and remember it.

    Args:
        by_table: the images that each table names.
        progress: called after each image that had to be read.
        limit: if more would have to be read, nothing is.
    """
    images = dict.fromkeys(image for its in by_table.values() for image in its)
    states = {image: state for image in images if (state := known_images.state_of(image))}
    known = {name: seen for table in by_table for name, seen in known_images.load(table).items()}
    found = Found(states, {image: known[state.name] for image, state in states.items() if state.name in known})
    new = [image for image in images if image not in found.seen]
    size = sum(states[image].bytes for image in new if image in states)
    if limit is not None and (len(new) > limit.images or size > limit.bytes):
        found.unread = len(new)
        return found
    saved = time.monotonic()
    try:
        for number, (image, result) in enumerate(_read_all(new), 1):
            if isinstance(result, Seen):
                found.seen[image] = result
            else:
                found.refused[image] = result
            if progress is not None:
                progress(number, len(new))
            if time.monotonic() - saved > _SAVE_SECONDS:
                _remember(by_table, found)
                saved = time.monotonic()
    finally:  # Ctrl-C, too: what was read is known next time
        if new:
            _remember(by_table, found)
    return found


def _remember(by_table: Mapping[Path, Sequence[ImageKey]], found: Found) -> None:
    for table, its in by_table.items():
        kept = [image for image in its if image in found.seen and image in found.states]
        names = {found.states[image].name: found.seen[image] for image in kept if found.states[image].settled}
        if names:
            known_images.save(table, names)


def _read_all(images: Sequence[ImageKey]) -> Iterator[tuple[ImageKey, Seen | list[Problem]]]:
    """Each image with what it is or what is wrong with it, in order."""
    count = min(threads(), len(images))
    if count < 2:
        yield from zip(images, map(_read, images), strict=True)
        return
    # `catch_warnings` in a reader is not made for threads; what it falls back to must be silent, because pydicom's
    # warnings quote headers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executor = ThreadPoolExecutor(count, thread_name_prefix="read-image")
        try:
            for start in range(0, len(images), _AT_ONCE):
                some = images[start : start + _AT_ONCE]
                yield from zip(some, executor.map(_read, some), strict=True)
        finally:
            executor.shutdown(cancel_futures=True)


def _read(image: ImageKey) -> Seen | list[Problem]:
    try:
        read = read_image(*image)
    except InputError as error:
        return error.problems
    return Seen(Picture.of(image[0], read), read.mark, read.warnings)


def threads() -> int:
    """How many threads may read: as many as this process was given processors, by Slurm or otherwise; a few at most."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(given) if given.isdecimal() else allowed, _MOST_THREADS))
