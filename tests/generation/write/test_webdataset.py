from __future__ import annotations

import io
import json
import tarfile

from medsyn.generation.write.webdataset import ARCHIVE, pack, write_tar

MANIFEST = [
    {"id": "a.b", "file": "a.b_0.png", "bytes": 5},
    {"id": "none", "file": None, "bytes": None},
    {"id": "a-b", "file": "a-b_0.png", "bytes": 6},
]
FILES = {"a.b_0.png": b"first", "a-b_0.png": b"second"}


def test_an_image_and_its_record_are_neighbours_under_one_key() -> None:
    _, files = pack(MANIFEST, FILES)
    with tarfile.open(fileobj=io.BytesIO(files[ARCHIVE])) as archive:
        names = archive.getnames()
        assert names == ["000000-a-b_0.json", "000000-a-b_0.png", "000002-a-b_0.json", "000002-a-b_0.png"]
        assert all(name.count(".") == 1 for name in names), "WebDataset's key ends at the first dot"
        member = archive.extractfile("000002-a-b_0.json")
        assert member is not None and json.load(member)["id"] == "a-b"


def test_the_manifest_says_where_each_image_is() -> None:
    manifest, files = pack(MANIFEST, FILES)
    places = [(record["archive"], record["file"]) for record in manifest]
    assert places == [(ARCHIVE, "000000-a-b_0.png"), (None, None), (ARCHIVE, "000002-a-b_0.png")]
    for record, content in ((manifest[0], b"first"), (manifest[2], b"second")):
        assert files[ARCHIVE][record["offset"] : record["offset"] + record["bytes"]] == content


def test_the_bytes_depend_on_the_members_alone() -> None:
    one, _ = write_tar({"b": b"2", "a": b"1"})
    other, _ = write_tar({"a": b"1", "b": b"2"})
    assert one == other
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        facts = {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in archive}
    assert facts == {(0, 0, 0, "", 0o640)} and b"ustar" in one[:512]
