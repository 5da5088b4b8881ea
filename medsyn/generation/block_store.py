"""Blocks: the unit of generation, a fixed group of items of one modality, on disk whole or not at all.

Which items a block holds is a function of the prompt list, the replicates and the block size. A shard is a range of
blocks; how many shards there are, which task makes them and in which order only matters to the queue, not to any file.
No torch here: planners count blocks on login nodes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.config import Config
from medsyn.data.prompts.store import BlockRanges, Item, PromptList, open_lists
from medsyn.errors import InputError
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory

MANIFEST, ATTEMPTS, TIMING = "manifest.jsonl", "attempts.jsonl", "timing.json"
REJECTED = (
    "rejected"  # folder of candidates that are no outputs, beside the parts of the blocks that they were made for
)

_log = logging.getLogger(__name__)


def item_fingerprint(item: Item) -> str:
    """Fingerprint of a requested item, 16 hex digits."""
    return disk.fingerprint(vars(item))[:16]


def image_seed(campaign_seed: int, item: Item, attempt: int) -> int:
    """The seed of one candidate, a function of the requested item and the attempt alone."""
    if item.seed is not None:
        return seed(item.seed, "given", item.replicate, attempt)
    return seed(campaign_seed, "image", item.prompt_id, item.replicate, attempt)


@dataclass(frozen=True)
class Blocks:
    """The items of one modality, cut into blocks of `size`; replicates of one prompt are side by side."""

    prompts: PromptList
    replicates: int  # of a prompt that does not say how many
    size: int

    @cached_property
    def _ranges(self) -> BlockRanges:
        return BlockRanges(tuple(self.prompts.run_items(self.replicates)), self.size)

    @property
    def item_count(self) -> int:
        """How many images were requested."""
        return self._ranges.item_count

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return self._ranges.count

    def items(self, number: int) -> list[Item]:
        """The items of block `number`; they can share batches."""
        return self.prompts.items(*self._ranges.items(number), self.replicates)

    def count_items(self, numbers: Iterable[int]) -> int:
        """How many items these blocks have together; reads no file."""
        ranges = map(self._ranges.items, numbers)
        return sum(stop - start for start, stop in ranges)


def read_blocks(config: Config, modality: str) -> Blocks:
    """The blocks of a modality of the campaign's prompt list."""
    if config.data.prompts is None:
        raise InputError("configuration", "must be set: generation needs a prompt list", key="data.prompts")
    directory = Path(config.data.prompts)
    prompts = open_lists(directory).get(modality, PromptList(directory, ()))
    return Blocks(prompts, config.generation.img_num, config.generation.block_size)


@dataclass(frozen=True)
class BlockContent:
    """What a block's directory holds."""

    images: Mapping[str, bytes]  # file name -> content: PNG files, or one archive of them
    manifest: Sequence[Mapping[str, Any]]  # one record per item; those with a `file` say its `bytes`
    attempts: Sequence[Mapping[str, Any]]  # one record per candidate
    timing: Mapping[str, Any]  # everything that differs from run to run


def plan_shards(block_count: int, blocks_per_shard: int) -> list[tuple[int, int]]:
    """Half-open block ranges, one per shard, that cover `block_count` blocks once."""
    starts = range(0, block_count, blocks_per_shard)
    return [(start, min(start + blocks_per_shard, block_count)) for start in starts]


def recorded_shards(directory: CampaignDirectory, modality: str, block_count: int) -> list[tuple[int, int]]:
    """The shards of a modality as recorded when the campaign was prepared; one shard where nothing is recorded."""
    try:
        size = disk.read_json(directory.campaign_file)["blocks_per_shard"][modality]
    except (OSError, ValueError, KeyError, TypeError):
        size = block_count
    return plan_shards(block_count, size) if block_count else []


def _json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records).encode()


def commit_block(block: Path, content: BlockContent) -> None:
    """Publish a block in one rename. An error (a full disk, say) leaves nothing behind.

    A whole block that another process has published in the meantime stays; its content is the same.
    """
    if block.exists():
        if read_manifest(block) is not None:
            return
        _discard(block)
    records = {
        ATTEMPTS: _json_lines(content.attempts),
        TIMING: (json.dumps(content.timing, indent=2) + "\n").encode(),
        MANIFEST: _json_lines(content.manifest),
    }
    disk.write_directory(block, {**content.images, **records})


def rejected_directory(block: Path) -> Path:
    """Where the rejected candidates of a block are, if the campaign keeps them."""
    return block.parents[1] / REJECTED / block.parent.name / block.name


def commit_rejected(block: Path, images: Mapping[str, bytes], manifest: Sequence[Mapping[str, Any]]) -> None:
    """Publish the rejected candidates of a block in one rename, if there are any. To be called before `commit_block`.

    What a killed process has published stays; its content is the same. What was made with other settings, for a block
    that has been moved away since, is replaced.
    """
    folder, content = rejected_directory(block), _json_lines(manifest)
    if folder.exists():
        if _is_there(folder, content):
            return
        _discard(folder)
    if manifest:
        disk.write_directory(folder, {**images, MANIFEST: content})


def _is_there(folder: Path, manifest: bytes) -> bool:
    """Whether the rejected candidates of a manifest are all there."""
    try:
        same = disk.read_own_file(folder / MANIFEST) == manifest
    except OSError:
        return False
    return same and len(read_rejected(folder)) == len(manifest.splitlines())


def read_rejected(folder: Path) -> list[dict[str, Any]]:
    """The records of a block's rejected candidates whose files are in `folder`; empty where none are kept.

    The campaign has no use for these files, and its owner may delete any of them: those are left out.
    """
    size = cache(disk.own_size)
    return [record for record in parse_manifest(folder) or () if _has_file(folder, record, size)]


def _has_file(folder: Path, record: Mapping[str, Any], size: Callable[[Path], int | None]) -> bool:
    """Whether the file of a record is there; False for a record that was edited by hand, too."""
    try:
        return stored_files(folder, record)["png"].is_there(size)
    except (OSError, KeyError, TypeError):
        return False


def parse_manifest(block: Path) -> list[dict[str, Any]] | None:
    """The records of the block's manifest, or None if it cannot be read."""
    try:
        records = [disk.from_json(line) for line in disk.read_own_file(block / MANIFEST).splitlines()]
    except (OSError, ValueError):
        return None
    return records if all(isinstance(record, dict) and _is_whole(record) for record in records) else None


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether the keys that name an image and its file are valid, and the file is one of the block itself."""
    file = record.get("file", 0)
    is_inside = file is None or (isinstance(file, str) and file == Path(file).name)
    return is_inside and isinstance(record.get("id", ""), str) and isinstance(record.get("replicate", 0), int)


def read_manifest(block: Path) -> list[dict[str, Any]] | None:
    """The block's manifest if every file exists with the right size, else None. Contents are not hashed."""
    records = parse_manifest(block)
    if records is None:
        return None
    try:
        size = cache(disk.own_size)  # all images may be in one archive
        whole = bool(records) and all(
            file.is_there(size) for record in records for file in stored_files(block, record).values()
        )
        whole = whole and None not in (size(block / ATTEMPTS), size(block / TIMING))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return records if whole else None


@dataclass(frozen=True)
class StoredFile:
    """One file of an image, by itself or in the block's archive."""

    path: Path  # of the file, or of the archive
    name: str
    offset: int  # in the archive; 0 for a file by itself
    size: int
    sha256: str
    in_archive: bool

    def is_there(self, size_of: Callable[[Path], int | None]) -> bool:
        """Whether it is a file of the recorded size, by `disk.own_size`; positions in an archive are not checked."""
        size = size_of(self.path)
        if size is None:
            return False
        return size >= self.offset + self.size if self.in_archive else size == self.size

    def read(self) -> bytes:
        """Its content; raises OSError if it is missing or not a file."""
        with disk.open_file(self.path, links=False) as stream:
            stream.seek(self.offset)
            return stream.read(self.size) if self.in_archive else stream.read()


def stored_files(block: Path, record: Mapping[str, Any]) -> dict[str, StoredFile]:
    """The files of a record of the block's manifest: `png`, if it has an image, and `dicom`, if that is enabled."""
    found: dict[str, StoredFile] = {}
    archive = record.get("archive")
    for kind, name, prefix in (("png", record["file"], ""), ("dicom", record.get("dicom"), "dicom_")):
        if name is not None:
            offset = record[f"{prefix}offset"] if archive else 0
            size, sha256 = record[f"{prefix}bytes"], record.get(f"{prefix}sha256", "")
            found[kind] = StoredFile(block / (archive or name), name, offset, size, sha256, bool(archive))
    return found


def read_image_bytes(block: Path, record: Mapping[str, Any]) -> bytes:
    """The PNG file of a record of the block's manifest, from its own file or from the block's archive.

    Raises:
        InputError: its content is not the recorded one.
    """
    file = stored_files(block, record)["png"]
    content = file.read()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        reason = "has changed since it was generated; `medsyn verify CAMPAIGN_DIR --repair` moves it to quarantine"
        raise InputError(block / file.name, reason)
    return content


def _discard(block: Path) -> None:
    """Remove a damaged block."""
    _log.warning("%s is damaged and will be regenerated", block)
    discarded = disk.temporary_sibling(block)
    shutil.rmtree(discarded, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process was faster
        block.rename(discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def finished_block(block: Path, items: Sequence[Item], facts: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The manifest of a block that need not be regenerated, or None.

    A damaged block (a missing or truncated file) is removed, with a warning, to be regenerated.

    Args:
        block: where it is.
        items: what it should hold.
        facts: what every record of its manifest should contain: the fingerprints of model and configuration, …

    Raises:
        InputError: the block is whole but was made from different prompts, by a different model or with other settings.
    """
    if not block.exists():
        return None
    records = read_manifest(block)
    if records is None:
        _discard(block)
        return None
    differing = {key for key, value in facts.items() for record in records if record.get(key) != value}
    if [record.get("item_fingerprint") for record in records] != [item_fingerprint(item) for item in items]:
        differing.add("prompts")
    if differing:
        names = ", ".join(sorted(differing))
        raise InputError(block, f"was made with a different {names}; choose another campaign.dir, or move it away")
    return records
