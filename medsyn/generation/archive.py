"""A block's images in one tar file, as WebDataset reads them: an image and its record side by side.

Deterministic: sorted names, no times, no owners. The manifest says where in the archive each image begins, so that
one can be read without unpacking.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from medsyn.disk import FILE_MODE

ARCHIVE = "images.tar"


def pack(
    manifest: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The manifest with the images' places in the archive, and the archive in the place of the files.

    A sample's key is its file's name without the ending, dots written as `-`, because WebDataset's key ends at the
    first dot; an item's number in the block is in front, so no two keys are the same.
    """
    members: dict[str, bytes] = {}
    names: dict[int, str] = {}
    for position, record in enumerate(manifest):
        if record["file"] is None:
            continue
        stem, _, ending = record["file"].rpartition(".")
        key = f"{position:06d}-{stem.replace('.', '-')}"
        names[position] = f"{key}.{ending}"
        members[names[position]] = files[record["file"]]
        if record.get("dicom"):
            members[f"{key}.dcm"] = files[record["dicom"]]
        members[f"{key}.json"] = (json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n").encode()
    archive, offsets = write_tar(members)
    packed = []
    for position, record in enumerate(manifest):
        place: dict[str, Any] = {"archive": None, "offset": None}
        if name := names.get(position):
            place = {"archive": ARCHIVE, "offset": offsets[name], "file": name}
            if record.get("dicom"):
                dicom = f"{name.rpartition('.')[0]}.dcm"
                place |= {"dicom": dicom, "dicom_offset": offsets[dicom]}
        packed.append({**record, **place})
    return packed, {ARCHIVE: archive}


def write_tar(members: Mapping[str, bytes]) -> tuple[bytes, dict[str, int]]:
    """A ustar archive of the members by name, and where the content of each begins."""
    stream = io.BytesIO()
    offsets: dict[str, int] = {}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(members):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(members[name]), 0, FILE_MODE
            offsets[name] = stream.tell() + tarfile.BLOCKSIZE
            archive.addfile(entry, io.BytesIO(members[name]))
    return stream.getvalue(), offsets
