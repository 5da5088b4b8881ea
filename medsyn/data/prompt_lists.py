"""The prompt list as the tasks read it: one file per modality, and an index that finds any item without reading it all.

`inputs/prompts/ct.jsonl` holds one prompt per line, itself a valid prompt list. Prompts with equal settings are
neighbours (a run), otherwise they keep the order of the user's list. `ct.offsets` says where every 64th line begins;
`index.json` counts and hashes the runs. None of it depends on the configuration's defaults, batch size or shards.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from medsyn.errors import InputError
from medsyn.stage import slug

INDEX = "index.json"
FORMAT = 1
KNOWN = ("id", "prompt", "modality", "n", "seed", "num_inference_steps", "guidance_scale", "negative_prompt")
LINES_PER_OFFSET = 64
_NUMBERS = 4  # of an entry of the offsets file, each a little-endian uint64

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Item:
    """One image that was asked for: a prompt and the number of its replicate. A None is the configuration's value."""

    prompt_id: str
    prompt: str
    replicate: int  # 0-based
    seed: int | None = None  # replaces the campaign's seed and the prompt's id as what the noise depends on
    num_inference_steps: int | None = None  # equal within a run, so within a block
    guidance_scale: float | None = None  # likewise
    negative_prompt: str | None = None  # may vary within a block
    extra: Mapping[str, Scalar] = field(default_factory=dict, hash=False)  # the list's further columns


@dataclass(frozen=True)
class Run:
    """Neighbouring prompts of one modality with the same steps and guidance scale. No block spans two runs."""

    num_inference_steps: int | None
    guidance_scale: float | None
    plain: int  # prompts without an `n`: the configuration says how many images of each
    counted: int  # prompts with one
    images: int  # the sum of their `n`
    size: int  # bytes
    sha256: str

    @property
    def prompts(self) -> int:
        """How many prompts it has."""
        return self.plain + self.counted

    def items(self, img_num: int) -> int:
        """How many images are asked for, `img_num` of each prompt that does not say."""
        return self.plain * img_num + self.images


@dataclass(frozen=True)
class PromptList:
    """The prompts of one modality on disk. What is read is what is asked for, not the file."""

    path: Path  # the .jsonl file
    runs: tuple[Run, ...]

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return sum(run.prompts for run in self.runs)

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
        entry = bisect_right(range(self._entries), number, key=lambda k: self._offsets[_NUMBERS * k + 1]) - 1
        skipped = number - self._offsets[_NUMBERS * entry + 1]
        return next(_item(record, 0) for place, record in enumerate(self._records(entry)) if place == skipped)

    @cached_property
    def _offsets(self) -> array[int]:
        return array("Q", self.path.with_suffix(".offsets").read_bytes())

    @property
    def _entries(self) -> int:
        return len(self._offsets) // _NUMBERS

    def _items_before(self, entry: int, img_num: int) -> int:
        _, _, plain, images = self._offsets[_NUMBERS * entry : _NUMBERS * (entry + 1)]
        return plain * img_num + images

    def _records(self, entry: int) -> Iterator[dict[str, Any]]:
        """The lines from an entry of the offsets on."""
        with self.path.open("rb") as stream:
            stream.seek(self._offsets[_NUMBERS * entry])
            for line in stream:
                yield json.loads(line)


def _item(record: Mapping[str, Any], replicate: int) -> Item:
    return Item(
        record["id"],
        record["prompt"],
        replicate,
        record.get("seed"),
        record.get("num_inference_steps"),
        record.get("guidance_scale"),
        record.get("negative_prompt"),
        {key: value for key, value in record.items() if key not in KNOWN},
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


def open_lists(directory: Path) -> dict[str, PromptList]:
    """The lists in `directory` by modality; raises InputError if it holds none, or a damaged one."""
    path = directory / INDEX
    try:
        index = json.loads(path.read_bytes())
        if index["format"] != FORMAT:
            raise InputError(path, "is of another format: prepare the campaign again")
        lists = {
            modality: PromptList(directory / f"{slug(modality)}.jsonl", tuple(Run(**run) for run in runs))
            for modality, runs in index["modalities"].items()
        }
        whole = all(one.path.stat().st_size == sum(run.size for run in one.runs) for one in lists.values())
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}; prepare the campaign again") from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(directory, "the prompt list is damaged: prepare the campaign again")
    return lists
