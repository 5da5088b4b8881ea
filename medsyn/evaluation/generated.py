"""What evaluation reads of the generated images: all records, which it counts, and a sample of the images.

Records are read block by block and never kept; images are read for a fixed sample, those with the lowest hashes, and
for the prompts of the contact sheets. A campaign of a million images needs no more memory than one of thousands.

Images are kept small, with their features, so that thousands fit into memory.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsyn import disk
from medsyn.config import Config
from medsyn.data.prompts.store import PromptList
from medsyn.evaluation.tally import Tally
from medsyn.generation.block_store import (
    ATTEMPTS,
    TIMING,
    Blocks,
    Item,
    read_image_bytes,
    read_manifest,
    recorded_shards,
)
from medsyn.generation.filter import SURPLUS
from medsyn.models.image_features import describe, shrink
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, slug
from medsyn.text import counted

Tick = Callable[[], None]  # called before each block and image is read; may raise `Saved`
Record = dict[str, Any]  # of an image, from a block's manifest

PICTURE_SIDE = 128  # an image is shrunk to at most this many pixels a side


@dataclass(frozen=True)
class Missing:
    """A missing part of the campaign, with the name of the task that makes it."""

    task: str
    what: str


@dataclass
class GeneratedImages:
    """What one mode made of one modality."""

    tally: Tally = field(default_factory=Tally)
    pictures: list[Picture] = field(default_factory=list)  # of a sample of the accepted images, in the prompts' order
    records: list[Record] = field(default_factory=list)  # of the pictures
    sampled: list[Record] = field(default_factory=list)  # of a sample of all items: the same ones in every mode
    shown: dict[str, tuple[Record, Picture | None]] = field(default_factory=dict)  # by prompt id, of the contact sheet

    @property
    def left_out(self) -> int:
        """Accepted images that were counted but not read."""
        return self.tally.accepted - len(self.pictures)


class _Sample:
    """The images with the lowest hashes, independent of their number and order."""

    def __init__(self, most: int, campaign_seed: int) -> None:
        self._most, self._seed = most, campaign_seed
        self._kept: list[tuple[int, int, Path, Record]] = []  # a heap: the highest hash first
        self._seen = 0

    def add(self, block: Path, line: Record) -> None:
        """Consider an image; images come in the order of the prompts."""
        self._seen += 1
        entry = (-seed(self._seed, "evaluate", line["id"], line["replicate"]), self._seen, block, line)
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, entry)
        elif entry[0] > self._kept[0][0]:
            heapq.heapreplace(self._kept, entry)

    def __iter__(self) -> Iterator[tuple[Path, Record]]:
        """Blocks and records, in the order they came."""
        return ((block, line) for _, _, block, line in sorted(self._kept, key=lambda entry: entry[1]))


def spread(prompts: PromptList, most: int) -> list[Item]:
    """At most `most` prompts, spread evenly over their list."""
    columns = min(most, prompts.prompts)
    return [prompts.prompt(index * prompts.prompts // columns) for index in range(columns)]


def read_generated(
    config: Config,
    directory: CampaignDirectory,
    mode: str,
    modality: str,
    prompts: PromptList,
    chosen: Sequence[Item],
    tick: Tick,
) -> tuple[GeneratedImages, list[Missing]]:
    """Read what one mode made of one modality, block by block; missing or damaged blocks are named by their task.

    Args:
        config: the campaign's.
        directory: where it is.
        mode: one of the configuration's.
        modality: one of the five.
        prompts: its prompts.
        chosen: the prompts of its contact sheet.
        tick: called before each block and each image.
    """
    made, lost = GeneratedImages(), dict[str, int]()
    sample, items = (_Sample(config.evaluation.max_images, config.campaign.seed) for _ in range(2))
    wanted = {item.prompt_id for item in chosen}
    shown: dict[str, tuple[Path, Record]] = {}
    blocks = Blocks(prompts, config.generation.img_num, config.generation.block_size)
    for shard, numbers in enumerate(recorded_shards(directory, modality, blocks.count)):
        for number in range(*numbers):
            tick()
            block = directory.block(mode, modality, number)
            manifest = read_manifest(block)
            if manifest is None:
                task = f"generate {slug(modality)}-{shard:05d}"
                lost[task] = lost.get(task, 0) + blocks.count_items([number])
                continue
            _count(made.tally, block, modality, manifest)
            for line in manifest:
                items.add(block, line)
                if line["accepted"] and line["file"] is not None:
                    sample.add(block, line)
                if line["id"] in wanted and _is_better(line, shown.get(line["id"])):
                    shown[line["id"]] = block, line
    made.pictures = [_read(block, line, modality, tick) for block, line in sample]
    made.records, made.sampled = ([line for _, line in its] for its in (sample, items))
    made.shown = {
        name: (line, None if line["file"] is None else _read(block, line, modality, tick))
        for name, (block, line) in shown.items()
    }
    return made, [Missing(task, f"{counted(count, f'{mode} image')} of {modality}") for task, count in lost.items()]


def _count(tally: Tally, block: Path, modality: str, manifest: Sequence[Record]) -> None:
    tally.add_images(modality, manifest)
    tally.add_candidates([line for line in disk.read_jsonl(block / ATTEMPTS) if line["reason"] != SURPLUS])
    if (block / TIMING).is_file():
        tally.add_timing(disk.read_json(block / TIMING))


def _is_better(line: Record, shown: tuple[Path, Record] | None) -> bool:
    """Whether to show this replicate instead of an earlier one: the first with an image is shown."""
    return shown is None or (shown[1]["file"] is None and line["file"] is not None)


def _read(block: Path, line: Record, modality: str, tick: Tick) -> Picture:
    tick()
    with Image.open(io.BytesIO(read_image_bytes(block, line))) as image:
        pixels = np.asarray(image.convert("RGB"))
    return picture(pixels, modality, line["prompt"], f"{block.parent.name}/{block.name}/{line['file']}")


@dataclass(frozen=True)
class Picture:
    """One image, about 27 kB if it is grey."""

    modality: str
    text: str
    stored: np.ndarray  # uint8 [S, S, 1 or 3], S at most PICTURE_SIDE; one channel if all three are equal
    features: np.ndarray  # float32 [D]
    name: str = ""  # its file, as the table or the campaign calls it
    patient: str = ""  # of a real image: its group (`medsyn.data.tables.split`), which no output names

    @property
    def pixels(self) -> np.ndarray:
        """The pixels, uint8 [S, S, 3]."""
        return np.broadcast_to(self.stored, (*self.stored.shape[:2], 3)).copy()


def picture(pixels: np.ndarray, modality: str, text: str, name: str = "", patient: str = "") -> Picture:
    """Shrink uint8 [H, W, 3] to a `Picture`."""
    small = shrink(pixels, min(PICTURE_SIDE, pixels.shape[0]))
    is_grey = bool((small == small[..., :1]).all())
    stored = (small[..., :1] if is_grey else small).copy()
    return Picture(modality, text, stored, describe(pixels), name, patient)
