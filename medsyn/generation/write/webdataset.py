"""A block's images in one tar file that WebDataset can read: each image beside its record.

Deterministic: sorted names, no times, no owners. The manifest has each image's offset in the archive, so that it can
be read without unpacking.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, cast

from medsyn.disk import FILE_MODE
from medsyn.records import ARCHIVED, ImageRecord

ARCHIVE = "images.tar"


def pack(manifest: Sequence[ImageRecord], files: Mapping[str, bytes]) -> tuple[list[ImageRecord], dict[str, bytes]]:
    """The manifest with the images' offsets in the archive, and the archive instead of the files.

    A sample's key is its file name without the extension, dots written as `-`, because WebDataset's key ends at the
    first dot; it begins with the item's number in the block, so keys are unique.
    """
    archive, offsets = write_tar(members(manifest, files))
    packed = []
    for position, record in enumerate(manifest):
        place: dict[str, Any] = {"archive": None, "offset": None}
        if record["file"] is not None:
            name = member_name(position, record["file"])
            place = {"archive": ARCHIVE, "offset": offsets[name], "file": name}
            if record.get("dicom"):
                dicom = member_name(position, record["dicom"])
                place |= {"dicom": dicom, "dicom_offset": offsets[dicom]}
        packed.append(cast(ImageRecord, {**record, **place}))
    return packed, {ARCHIVE: archive}


def member_name(position: int, file: str) -> str:
    """The name in the archive of a file of the item at `position` of its block."""
    stem, _, ending = file.rpartition(".")
    return f"{position:06d}-{stem.replace('.', '-')}.{ending}"


def members(manifest: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The archive's members by name: every image and its record."""
    found: dict[str, bytes] = {}
    for position, record in enumerate(manifest):
        if record["file"] is None:
            continue
        found[member_name(position, record["file"])] = files[record["file"]]
        if record.get("dicom"):
            found[member_name(position, record["dicom"])] = files[record["dicom"]]
        json_name = f"{record['file'].rpartition('.')[0]}.json"
        content = json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n"
        found[member_name(position, json_name)] = content.encode()
    return found


def unpacked(record: Mapping[str, Any], file: str) -> dict[str, Any]:
    """An archived block's record as it was before packing, when its image was named `file`."""
    plain = {key: value for key, value in record.items() if key not in ARCHIVED}
    if record["file"] is not None:
        plain["file"] = file
        if record.get("dicom"):
            plain["dicom"] = f"{file.rpartition('.')[0]}.dcm"
    return plain


def write_tar(members: Mapping[str, bytes]) -> tuple[bytes, dict[str, int]]:
    """A ustar archive of the members by name, and the offset of each one's content in bytes."""
    stream = io.BytesIO()
    offsets: dict[str, int] = {}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(members):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(members[name]), 0, FILE_MODE
            offsets[name] = stream.tell() + tarfile.BLOCKSIZE
            archive.addfile(entry, io.BytesIO(members[name]))
    return stream.getvalue(), offsets
