"""Is what is on disk what the manifests say, and all that was asked for? Every finding is one line.

No torch here, except where images are made again.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from pydicom import dcmread

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images import SYNTHETIC_KEY
from medsyn.generation.shard import (
    ATTEMPTS,
    MANIFEST,
    TIMING,
    Blocks,
    Item,
    StoredFile,
    image_seed,
    item_fingerprint,
    parse_manifest,
    stored_files,
)
from medsyn.generation.shard_tables import MANIFEST_TABLE
from medsyn.stage import CampaignDirectory

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the files."""

    place: Path
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass(frozen=True)
class Images:
    """What one mode made of one modality, and what it should have made."""

    config: Config
    directory: CampaignDirectory
    mode: str
    modality: str
    blocks: Blocks

    def block(self, number: int) -> Path:
        """Where a block is."""
        return self.directory.block(self.mode, self.modality, number)

    def findings(self) -> Iterator[Finding]:
        """Everything wrong with the blocks: gaps, doubles, strangers, and each file that is not as recorded."""
        fingerprints: Counter[tuple[Any, ...]] = Counter()
        for number in range(self.blocks.count):
            block, items = self.block(number), self.blocks.items(number)
            if not block.is_dir():
                yield Finding(block, f"is missing, with {len(items)} images")
                continue
            records = parse_manifest(block)
            if records is None:
                yield Finding(block / MANIFEST, "is missing or damaged")
                continue
            fingerprints.update((r.get("model_fingerprint"), r.get("config_fingerprint")) for r in records)
            yield from check_items(block, items, records, self.config.campaign.seed)
            yield from check_attempts(block, records)
            yield from check_files(block, records)
        if len(fingerprints) > 1:
            what = f"images of {len(fingerprints)} different models or configurations are mixed"
            yield Finding(self.block(0).parent.parent, what)
        yield from self._strangers()

    def _strangers(self) -> Iterator[Finding]:
        expected = {self.block(number) for number in range(self.blocks.count)}
        for block in sorted(self.block(0).parent.parent.glob("part-*/block-*")):
            if block not in expected:
                yield Finding(block, "is not a block of this campaign's prompt list")

    def check_tables(self, shards: Sequence[tuple[int, int]]) -> Iterator[Finding]:
        """Whether each shard's table has just the images of its blocks' manifests."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for numbers in shards:
            path = self.directory.shard(self.mode, self.modality, numbers) / MANIFEST_TABLE
            try:
                table = pq.read_table(path, columns=["id", "replicate", "sha256"]).to_pylist()
            except (OSError, pa.ArrowException):
                yield Finding(path, "is missing or damaged; running the task again makes it")
                continue
            found = [(row["id"], row["replicate"], row["sha256"]) for row in table]
            records = [record for number in range(*numbers) for record in parse_manifest(self.block(number)) or []]
            if found != [(record["id"], record["replicate"], record["sha256"]) for record in records]:
                yield Finding(path, "has other rows than its blocks' manifests")

    def pictured(self) -> Iterator[tuple[Path, Item, Mapping[str, Any]]]:
        """(block, item, record) of every image there is, where the record is of the item that was asked for."""
        for number in range(self.blocks.count):
            records = parse_manifest(self.block(number)) or []
            for item, record in zip(self.blocks.items(number), records, strict=False):
                if record["file"] is not None and record.get("item_fingerprint") == item_fingerprint(item):
                    yield self.block(number), item, record


def check_items(
    block: Path, items: Sequence[Item], records: Sequence[Mapping[str, Any]], campaign_seed: int
) -> Iterator[Finding]:
    """Gaps, doubles and strangers in a block's manifest, and records that are not of what was asked for."""
    asked = {(item.prompt_id, item.replicate): item for item in items}
    found = Counter((record["id"], record["replicate"]) for record in records)
    for key in asked:
        if key not in found:
            yield Finding(block / MANIFEST, f"{_name(key)} is not in it")
    for key, count in found.items():
        if count > 1:
            yield Finding(block / MANIFEST, f"{_name(key)} is in it {count} times")
        if key not in asked:
            yield Finding(block / MANIFEST, f"{_name(key)} was not asked for")
    for record in records:
        key = record["id"], record["replicate"]
        if key not in asked:
            continue
        if record.get("item_fingerprint") != item_fingerprint(asked[key]):
            yield Finding(block / MANIFEST, f"{_name(key)} was made from another prompt or other settings")
        if record["file"] is not None and record["seed"] != image_seed(campaign_seed, asked[key], record["attempt"]):
            yield Finding(block / MANIFEST, f"{_name(key)} has another seed than follows from its attempt")
        if record["accepted"] and record["file"] is None:
            yield Finding(block / MANIFEST, f"{_name(key)} is accepted and has no image")


def check_attempts(block: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether every image is the chosen one of its candidates."""
    if not (block / ATTEMPTS).is_file():
        yield Finding(block / ATTEMPTS, "is missing")
        return
    chosen = Counter(
        (attempt.get("id"), attempt.get("replicate"), attempt.get("attempt"))
        for attempt in disk.read_jsonl(block / ATTEMPTS)
        if attempt.get("chosen")
    )
    expected = Counter((r["id"], r["replicate"], r["attempt"]) for r in records if r["file"] is not None)
    if chosen != expected:
        differing = sorted({f"{key[0]}_{key[1]}" for key in (chosen - expected) + (expected - chosen)})
        yield Finding(block / ATTEMPTS, f"does not agree with the manifest about {', '.join(differing)}")


def check_files(block: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether every file is there, as recorded, marked as synthetic, and no other is."""
    named = {MANIFEST, ATTEMPTS, TIMING}
    places: Counter[tuple[Any, Any]] = Counter()
    for record in records:
        if record["file"] is None:
            continue
        places[record.get("archive"), record["file"]] += 1
        for kind, file in stored_files(block, record).items():
            named.add(file.path.name)
            if reason := _wrong_with(file, record, is_dicom=kind == "dicom"):
                yield Finding(block / file.name, reason)
    for (_, file), count in places.items():
        if count > 1:
            yield Finding(block / file, f"is the image of {count} items")
    for path in sorted(block.iterdir()):
        if path.name not in named:
            yield Finding(path, "is in no manifest")


def _wrong_with(file: StoredFile, record: Mapping[str, Any], is_dicom: bool) -> str | None:
    try:
        content = file.read()
    except OSError:
        return "is missing"
    if len(content) != file.size:
        return f"has {len(content)} bytes, the manifest says {file.size}"
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return "has other content than the manifest says (SHA-256)"
    try:
        marked, width, height = (_look_at_dicom if is_dicom else _look_at_png)(content)
    except Exception as error:  # a parser fed something else raises anything
        return f"is no image ({type(error).__name__})"
    if not marked:
        return "is not marked as synthetic"
    if (width, height) != (record["width"], record["height"]):
        return f"is {width} x {height} pixels, the manifest says {record['width']} x {record['height']}"
    differing = [] if is_dicom else _contradictions(content, record)
    return f"says otherwise of itself than the manifest: {', '.join(differing)}" if differing else None


def _contradictions(content: bytes, record: Mapping[str, Any]) -> list[str]:
    """The facts that a PNG file tells otherwise than its record: its prompt, seed, scores and the like."""
    from medsyn.generation.provenance import png_facts

    with Image.open(io.BytesIO(content)) as image:
        said = image.info
    return [key for key, value in png_facts(record).items() if value is not None and said.get(key) != str(value)]


def _look_at_png(content: bytes) -> tuple[bool, int, int]:
    """Whether it is marked, and its width and height; its pixels are not decoded."""
    with Image.open(io.BytesIO(content)) as image:
        return image.info.get(SYNTHETIC_KEY) == "YES", *image.size


def _look_at_dicom(content: bytes) -> tuple[bool, int, int]:
    header = dcmread(io.BytesIO(content), stop_before_pixels=True)
    return header.get("SyntheticData") == "YES", header.Columns, header.Rows


def _name(key: tuple[str, int]) -> str:
    return f"the image of prompt {key[0]}, replicate {key[1]},"


def _sample(entries: Iterable[Entry], count: int) -> list[Entry]:
    """`count` random ones of any number of entries, each as likely as any other; the rest is not kept."""
    chosen: list[Entry] = []
    for number, entry in enumerate(entries):
        if number < count:
            chosen.append(entry)
        elif (place := random.randrange(number + 1)) < count:
            chosen[place] = entry
    return chosen


def rerun(images: Sequence[Images], count: int, tell: Any = None) -> Iterator[Finding]:
    """Make `count` random images again and compare their files, byte by byte.

    Scores are taken from the record: they follow from the picture, and picking is not what is tested here.
    """
    from medsyn.generation.loader import Loader
    from medsyn.generation.provenance import encode_png, png_facts

    chosen = _sample(((one, *found) for one in images for found in one.pictured()), count)
    chosen.sort(key=lambda entry: (entry[0].modality, entry[0].mode, str(entry[1])))
    loaders = {one.modality: Loader(one.config, one.modality, one.directory) for one in images}
    loaded: tuple[Images, Any] | None = None
    for done, (one, block, item, record) in enumerate(chosen):
        if loaded is None or loaded[0] is not one:
            loaded = one, loaders[one.modality].painter(one.mode)
        picture = loaded[1].paint([(item, record["attempt"])]).pictures[0]
        if hashlib.sha256(encode_png(picture, png_facts(record))).hexdigest() != record["sha256"]:
            yield Finding(block / record["file"], "comes out differently when it is made again on this machine")
        if tell is not None:
            tell("making images again", done + 1, len(chosen))
