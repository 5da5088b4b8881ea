"""The prompt list as the tasks read it: one file per modality, and an index to find any item without reading them all.

`inputs/prompts/ct.jsonl` holds one prompt per line, itself a valid prompt list. Prompts with the same number of steps,
and with or without guidance, are neighbours (a run), otherwise they keep the order of the user's list. `ct.offsets`
says where every 64th line begins; `index.json` counts and hashes the runs. None of it depends on the configuration's
defaults, batch size or shards.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.data.prompts.formats import COLUMNS, INDEX
from medsyn.data.prompts.rows import Scalar
from medsyn.errors import InputError
from medsyn.stage import slug

FORMAT = 1
LINES_PER_OFFSET = 64
# uint64 each, in the processor's order (little-endian): the byte where a line begins, how many prompts are before it,
# how many of those have no `n`, and how many images the others request
NUMBERS_PER_OFFSET = 4


@dataclass(frozen=True)
class Item:
    """One requested image: a prompt and the number of its replicate. None means the configuration's value."""

    prompt_id: str
    prompt: str
    replicate: int  # 0-based
    seed: int | None = None  # the noise depends on it instead of the campaign's seed and the prompt's id
    num_inference_steps: int | None = None  # equal within a block
    guidance_scale: float | None = None  # within a block 1 for all or for none
    negative_prompt: str | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict, hash=False)  # the list's passthrough columns


@dataclass(frozen=True)
class Run:
    """Neighbouring prompts of one modality that can share a batch. No block spans two runs."""

    num_inference_steps: int | None
    guided: bool | None  # whether their guidance scale is not 1; None: as configured
    plain: int  # prompts without an `n`: the configuration says how many images of each
    counted: int  # prompts with one
    images: int  # the sum of their `n`
    size: int  # bytes
    sha256: str

    @classmethod
    def plain_prompts(cls, number: int) -> Run:
        """A run of prompts that are not written yet and consist of their text only."""
        return cls(None, None, number, 0, 0, 0, "")

    @property
    def prompts(self) -> int:
        """How many prompts it has."""
        return self.plain + self.counted

    def items(self, img_num: int) -> int:
        """How many images are requested; `img_num` for each prompt without an `n`."""
        return self.plain * img_num + self.images


@dataclass(frozen=True)
class PromptList:
    """The prompts of one modality on disk. Only what is asked for is read, not the whole file."""

    path: Path  # the .jsonl file
    runs: tuple[Run, ...]

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return sum(run.prompts for run in self.runs)

    @property
    def offsets_path(self) -> Path:
        """The file that says where the lines begin."""
        return self.path.with_suffix(".offsets")

    def run_items(self, img_num: int) -> list[int]:
        """How many items each run has; item 0 is the first one's first replicate."""
        return [run.items(img_num) for run in self.runs]

    def items(self, start: int, stop: int, img_num: int) -> list[Item]:
        """The items `start` to `stop` (half open), replicates of a prompt side by side."""
        found: list[Item] = []
        if start >= stop:
            return found
        entry = bisect_right(range(self._entries), start, key=lambda k: self._items_before(k, img_num)) - 1
        first = self._items_before(entry, img_num)
        for record in self._records(entry):
            count = record.get("n", img_num)
            for replicate in range(max(start - first, 0), min(stop - first, count)):
                found.append(_item(record, replicate))
            first += count
            if first >= stop:
                break
        return found

    def prompt(self, number: int) -> Item:
        """Prompt `number` (0-based) as its first item."""
        entry = bisect_right(range(self._entries), number, key=lambda k: self._offsets[NUMBERS_PER_OFFSET * k + 1]) - 1
        skipped = number - self._offsets[NUMBERS_PER_OFFSET * entry + 1]
        return next(_item(record, 0) for place, record in enumerate(self._records(entry)) if place == skipped)

    def each(self, img_num: int) -> Iterator[tuple[Item, int]]:
        """Every prompt as its first item, and how many items it has."""
        for record in self._records(0) if self.runs else ():
            yield _item(record, 0), record.get("n", img_num)

    @cached_property
    def _offsets(self) -> array[int]:
        return array("Q", self.offsets_path.read_bytes())

    @property
    def _entries(self) -> int:
        return len(self._offsets) // NUMBERS_PER_OFFSET

    def _items_before(self, entry: int, img_num: int) -> int:
        _, _, plain, images = self._offsets[NUMBERS_PER_OFFSET * entry : NUMBERS_PER_OFFSET * (entry + 1)]
        return plain * img_num + images

    def _records(self, entry: int) -> Iterator[dict[str, Any]]:
        """The lines from an entry of the offsets on."""
        with self.path.open("rb") as stream:
            stream.seek(self._offsets[NUMBERS_PER_OFFSET * entry])
            for line in stream:
                yield disk.from_json(line)


def _item(record: Mapping[str, Any], replicate: int) -> Item:
    return Item(
        record["id"],
        record["prompt"],
        replicate,
        record.get("seed"),
        record.get("num_inference_steps"),
        record.get("guidance_scale"),
        record.get("negative_prompt"),
        {key: value for key, value in record.items() if key not in COLUMNS},
    )


@dataclass(frozen=True)
class BlockRanges:
    """Blocks of at most `size` items, none of which spans two runs; the last of each run may be short."""

    run_items: tuple[int, ...]
    size: int

    @cached_property
    def _first_blocks(self) -> list[int]:
        return list(accumulate((-(-items // self.size) for items in self.run_items), initial=0))

    @cached_property
    def _first_items(self) -> list[int]:
        return list(accumulate(self.run_items, initial=0))

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return self._first_blocks[-1]

    @property
    def item_count(self) -> int:
        """How many items there are."""
        return self._first_items[-1]

    def items(self, number: int) -> tuple[int, int]:
        """The half-open range of items of block `number`."""
        run = bisect_right(self._first_blocks, number) - 1
        start = self._first_items[run] + (number - self._first_blocks[run]) * self.size
        return start, min(start + self.size, self._first_items[run + 1])


@dataclass(frozen=True)
class ListIndex:
    """What is in a campaign's lists: the runs of each modality, in the order of their file."""

    modalities: Mapping[str, tuple[Run, ...]]

    def text(self) -> str:
        """The content of `index.json`: equal for equal lists."""
        runs = {modality: [asdict(run) for run in runs] for modality, runs in self.modalities.items()}
        return json.dumps({"format": FORMAT, "modalities": runs}, indent=1) + "\n"

    def amounts(self) -> dict[str, list[tuple[int, int]]]:
        """By modality, of each run: prompts without an `n`, and the images that the others request."""
        return {name: [(run.plain, run.images) for run in runs] for name, runs in self.modalities.items()}

    @classmethod
    def read(cls, directory: Path) -> ListIndex:
        """The index in `directory`; raises InputError if there is none, or it has a different format."""
        path = directory / INDEX
        try:
            index = disk.read_json(path)
            if index["format"] != FORMAT:
                raise InputError(path, "has a different format: prepare the campaign again")
            modalities = index["modalities"].items()
            return cls({modality: tuple(Run(**run) for run in runs) for modality, runs in modalities})
        except OSError as error:
            raise InputError(path, f"cannot be read: {error.strerror}; prepare the campaign again") from None
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(path, "is damaged: prepare the campaign again") from None


def list_file(directory: Path, modality: str) -> Path:
    """The file with the prompts of a modality; its offsets are beside it."""
    return directory / f"{slug(modality)}.jsonl"


def open_lists(directory: Path) -> dict[str, PromptList]:
    """The lists in `directory` by modality; raises InputError if there are none, or one has the wrong size."""
    index = ListIndex.read(directory)
    lists = {modality: PromptList(list_file(directory, modality), runs) for modality, runs in index.modalities.items()}
    for one in lists.values():
        reason = _damage_in_size(one)
        if reason is not None:
            raise InputError(one.path, f"{reason}: prepare the campaign again")
    return lists


def damage(directory: Path, hashes: bool) -> str | None:
    """How the lists in `directory` differ from their index, or None: their sizes, and their content if `hashes`."""
    try:
        lists = open_lists(directory)
    except InputError as error:
        return str(error)
    for one in lists.values() if hashes else ():
        with one.path.open("rb") as stream:
            for run in one.runs:
                digest, left = hashlib.sha256(), run.size
                while left and (piece := stream.read(min(left, 1 << 20))):
                    digest.update(piece)
                    left -= len(piece)
                if digest.hexdigest() != run.sha256:
                    return f"{one.path} has changed since it was written"
    return None


def _damage_in_size(one: PromptList) -> str | None:
    entries = sum(-(-run.prompts // LINES_PER_OFFSET) for run in one.runs)
    sizes = {one.path: sum(run.size for run in one.runs), one.offsets_path: entries * NUMBERS_PER_OFFSET * 8}
    for path, size in sizes.items():
        try:
            found = path.stat().st_size
        except OSError:
            return f"{path.name} is missing"
        if found != size:
            return f"{path.name} has {found} bytes instead of {size}"
    return None
