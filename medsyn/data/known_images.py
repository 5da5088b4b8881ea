"""What was found in images when they were last read, so that a check reads no file twice.

A table has one file in the user's cache. In it an image goes by a hash of its path, size, inode, times and of the
version of the readers: a file that was written, replaced or renamed since is read again, and so is every file once a
reader has changed. Neither paths nor anything of a header is written. Images that could not be used are not kept,
because a file system may have been at fault.

Two processes may check one table at once: each writes a whole file, the last one stays, and what it lacks is read
again. A damaged file is none.
"""

from __future__ import annotations

import functools
import hashlib
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from medsyn import disk, user_cache
from medsyn.data.contents import ImageKey, Picture

_RECENT_SECONDS = 2.0  # the clocks of file systems are coarse: a later change may have the same time
_TABLES_KEPT = 64
_LIBRARIES = ("Pillow", "pydicom", "nibabel", "numpy")

# format, width, height, spacing, digest of the pixels, mark, warnings
_Stored = tuple[str, int, int, float | None, str, str, tuple[str, ...]]
_FILE = TypeAdapter(dict[str, _Stored])


@dataclass(frozen=True)
class Seen:
    """What an image is, what marks it as generated, and what the reader has warned of."""

    picture: Picture
    mark: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class FileState:
    """An image's file as it is now."""

    name: str  # that it goes by in the cache
    bytes: int
    settled: bool  # whether the name will do next time
    inode: tuple[int, int]  # with the device


def state_of(image: ImageKey) -> FileState | None:
    """The state of an image's file, before it is read; None if it is no regular file that can be asked."""
    path, modality, volume = image
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    times = found.st_mtime_ns, found.st_ctime_ns
    facts = (_readers(), str(path), modality, volume, found.st_ino, found.st_size, *times)
    name = hashlib.blake2b(repr(facts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    settled = time.time() - max(times) / 1e9 > _RECENT_SECONDS
    return FileState(name, found.st_size, settled, (found.st_dev, found.st_ino))


def load(table: Path) -> dict[str, Seen]:
    """What is known of a table's images, by the names of their states; nothing if it cannot be read."""
    path = _path(table)
    if path is None:
        return {}
    try:
        stored = _FILE.validate_json(path.read_bytes())
        return {name: _seen(entry) for name, entry in stored.items()}
    except (OSError, ValidationError, ValueError):
        return {}


def save(table: Path, images: Mapping[str, Seen]) -> None:
    """Remember what is known of a table's images, by the names of their states; a full disk is no error."""
    path = _path(table)
    if path is None:
        return
    stored: dict[str, _Stored] = {}
    for name, seen in images.items():
        picture = seen.picture
        size = picture.size
        stored[name] = (picture.format, *size, picture.spacing, picture.digest.hex(), seen.mark, seen.warnings)
    with suppress(OSError):
        disk.make_directory(path.parent)
        disk.write_atomic(path, _FILE.dump_json(stored))
        for other in sorted(path.parent.glob("images-*.json"), key=lambda one: -one.stat().st_mtime)[_TABLES_KEPT:]:
            other.unlink()


def _seen(entry: _Stored) -> Seen:
    kind, width, height, spacing, digest, mark, warnings = entry
    return Seen(Picture(kind, (width, height), spacing, bytes.fromhex(digest)), mark, warnings)


def _path(table: Path) -> Path | None:
    folder = user_cache.directory()
    return folder and folder / f"images-{disk.fingerprint(str(table.absolute()))[:16]}.json"


@functools.cache
def _readers() -> str:
    """What decides what is found in a file: the readers' own code and the libraries that they use."""
    own = sorted((Path(__file__).parent / "images").glob("*.py"))
    return disk.fingerprint([[disk.sha256_file(path) for path in own], [_version(name) for name in _LIBRARIES]])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
