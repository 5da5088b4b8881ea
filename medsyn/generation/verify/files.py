"""Check a block's files: is each of them there, as recorded and marked as synthetic, and nothing else?"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydicom import dcmread

from medsyn import disk
from medsyn.data.images.read import SYNTHETIC_KEY
from medsyn.generation.block_store import ATTEMPTS, MANIFEST, TIMING, Item, StoredFile, stored_files
from medsyn.generation.verify.finding import Finding, unread
from medsyn.generation.write.png import file_name, png_text
from medsyn.generation.write.webdataset import ARCHIVE, member_name, members, unpacked, write_tar
from medsyn.text import counted

Record = Mapping[str, Any]
IN_USE = r"\.nfs[0-9a-f]+"  # NFS keeps a removed file under such a name while a process reads it


def check_files(block: Path, records: Sequence[Record], items: Sequence[Item], archive: bool) -> Iterator[Finding]:
    """Check that every file is there, as recorded, and no other.

    Args:
        block: where it is.
        records: of its manifest.
        items: what was requested, in order.
        archive: whether the images are in one tar file.
    """
    read = _Reader(block) if archive else StoredFile.read
    named = {MANIFEST, ATTEMPTS, TIMING}
    places: Counter[str] = Counter()
    for position, record in enumerate(records):
        if record["file"] is None:
            continue
        places[record["file"]] += 1
        for kind, file in stored_files(block, record).items():
            named.add(file.path.name)
            if reason := _wrong_with(file, read, record, is_dicom=kind == "dicom"):
                yield Finding(block / file.name, reason, block)
        if position < len(items):
            expected = file_name(items[position])
            expected = member_name(position, expected) if archive else expected
            if record["file"] != expected:
                yield Finding(block / record["file"], f"should be named {expected}", block)
    for file_or_member, count in places.items():
        if count > 1:
            yield Finding(block / file_or_member, f"is the image of {count} items", block)
    if archive:
        named.add(ARCHIVE)
        yield from _check_archive(block, records, items)
    for path in sorted(block.iterdir()):
        if path.name not in named and not re.fullmatch(IN_USE, path.name):
            yield Finding(path, "is not in the manifest", path)


class _Reader:
    """Reads members of a block's archive, loading the archive once."""

    def __init__(self, block: Path) -> None:
        self._block = block
        self._archives: dict[Path, bytes] = {}

    def __call__(self, file: StoredFile) -> bytes:
        """The member's content; raises OSError if its archive is missing or not a file."""
        if file.path not in self._archives:
            self._archives[file.path] = disk.read_own_file(file.path)
        return self._archives[file.path][file.offset : file.offset + file.size]


def _check_archive(block: Path, records: Sequence[Record], items: Sequence[Item]) -> Iterator[Finding]:
    """Check that the archive is, byte by byte, what packing its images and their records gives."""
    path = block / ARCHIVE
    has_images = any(record["file"] is not None for record in records)
    try:
        content = disk.read_own_file(path)
    except OSError as error:
        if has_images or not isinstance(error, FileNotFoundError):
            yield Finding(path, unread(error), block)
        return
    if [(record["id"], record["replicate"]) for record in records] != [(i.prompt_id, i.replicate) for i in items]:
        return  # reported already, and positions mean nothing now
    plain = [unpacked(record, file_name(item)) for record, item in zip(records, items, strict=True)]
    files: dict[str, bytes] = {}
    end = 0
    for record, packed in zip(plain, records, strict=True):
        for kind, file in stored_files(block, packed).items():
            name = record["file"] if kind == "png" else record["dicom"]
            files[name] = content[file.offset : file.offset + file.size]
            end = max(end, file.offset + file.size)
    if len(content) < end:
        yield Finding(path, f"is truncated to {counted(len(content), 'byte')}; its images end at byte {end}", block)
        return
    packed_members = members(plain, files)
    expected, offsets = write_tar(packed_members)
    if content == expected:
        return
    length = min(len(content), len(expected))
    first = next((place for place in range(length) if content[place] != expected[place]), length)
    if first < length:
        name = max((name for name in offsets if offsets[name] - 512 <= first), key=lambda name: offsets[name])
        yield Finding(path, f"does not match its images and records from byte {first} on (in or after {name})", block)
    elif len(content) < len(expected):
        yield Finding(
            path, f"is truncated to {counted(len(content), 'byte')}; its images and records need {len(expected)}", block
        )
    else:
        yield Finding(path, f"has {counted(len(content) - len(expected), 'byte')} after its end", block)


def _wrong_with(file: StoredFile, read: Callable[[StoredFile], bytes], record: Record, is_dicom: bool) -> str | None:
    try:
        content = read(file)
    except OSError as error:
        return unread(error)
    if len(content) != file.size:
        return f"has {counted(len(content), 'byte')}, the manifest says {file.size}"
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return "does not match the SHA-256 in the manifest"
    try:
        marked, width, height, said = (_look_at_dicom if is_dicom else _look_at_png)(content)
    except Exception as error:  # a parser fed something else may raise anything
        return f"is not an image ({type(error).__name__})"
    if not marked:
        return "is not marked as synthetic"
    if (width, height) != (record["width"], record["height"]):
        return f"is {width} x {height} pixels, the manifest says {record['width']} x {record['height']}"
    facts = {} if is_dicom else png_text(record)
    differing = [key for key, value in facts.items() if value is not None and said.get(key) != str(value)]
    return f"its metadata differs from the manifest: {', '.join(differing)}" if differing else None


_Look = tuple[bool, int, int, Mapping[Any, Any]]


def _look_at_png(content: bytes) -> _Look:
    """Whether it is marked, its width and height, and its text chunks; the pixels are not decoded."""
    with Image.open(io.BytesIO(content)) as image:
        return image.info.get(SYNTHETIC_KEY) == "YES", *image.size, image.info


def _look_at_dicom(content: bytes) -> _Look:
    header = dcmread(io.BytesIO(content), stop_before_pixels=True)
    return header.get("SyntheticData") == "YES", header.Columns, header.Rows, {}
