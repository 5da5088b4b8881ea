"""Check that regenerated images are the same files, for those made on this kind of device."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medsyn import disk
from medsyn.generation.block_store import TIMING, Item, item_fingerprint, parse_manifest
from medsyn.generation.sample.load import Loader
from medsyn.generation.verify.campaign import Images
from medsyn.generation.verify.finding import Finding
from medsyn.generation.write.png import encode_png, png_text
from medsyn.generation.write.provenance import device_name
from medsyn.models.device import choose_device

Entry = TypeVar("Entry")
_Made = tuple[Images, Path, Item, Mapping[str, Any]]  # (its set, its block, its item, its record)


@dataclass
class Rerun:
    """Regenerates random images; counts them, and those that could not be compared."""

    count: int  # images to regenerate
    made: int = 0
    elsewhere: Counter[str] = field(default_factory=Counter)  # images of other devices, by their name

    def findings(self, images: Sequence[Images], tell: Any = None) -> Iterator[Finding]:
        """Regenerate images and compare their files, byte by byte.

        Scores are taken from the record: they follow from the picture, and the choice is not tested here.
        """
        if not images:
            return
        here = device_name(choose_device(images[0].config.device).device)
        chosen = _sample((entry for one in images for entry in self._comparable(one, here)), self.count)
        chosen.sort(key=lambda entry: (entry[0].modality, entry[0].mode, str(entry[1])))
        loaders = {one.modality: Loader(one.config, one.modality, one.directory) for one in images}
        loaded: tuple[Images, Any, Mapping[str, Any]] | None = None
        for one, block, item, record in chosen:
            if loaded is None or loaded[0] is not one:
                loader = loaders[one.modality]
                loaded = one, loader.sampler(one.mode), loader.facts(one.mode)
            picture = loaded[1].sample([(item, record["attempt"])]).pictures[0]
            if hashlib.sha256(encode_png(picture, png_text(record))).hexdigest() != record["sha256"]:
                differing = [key for key, value in loaded[2].items() if record.get(key) != value]
                how = f", with a different {', '.join(differing)}" if differing else ""
                what = f"comes out differently when regenerated on this machine{how}"
                yield Finding(block / str(record["file"]), what)
            self.made += 1
            if tell is not None:
                tell("regenerating images", self.made, len(chosen))

    def _comparable(self, images: Images, here: str) -> Iterator[_Made]:
        for number in range(images.blocks.count):
            block = images.block(number)
            devices = _devices(block)
            for position, (item, record) in enumerate(_pictured(block, images.blocks.items(number))):
                if record is None:
                    continue
                device = devices[position] if position < len(devices) else None
                if device == here:
                    yield images, block, item, record
                else:
                    self.elsewhere[device or "an unknown device"] += 1


def _pictured(block: Path, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any] | None]]:
    """(item, record) of every record of a block; None for one without an image or of another item."""
    for item, record in zip(items, parse_manifest(block) or [], strict=False):
        is_usable = record.get("file") is not None and isinstance(record.get("attempt"), int)
        yield item, record if is_usable and record.get("item_fingerprint") == item_fingerprint(item) else None


def _devices(block: Path) -> list[str | None]:
    try:
        devices = disk.read_json(block / TIMING)["devices"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return devices if isinstance(devices, list) else []


def _sample(entries: Iterable[Entry], count: int) -> list[Entry]:
    """`count` random entries of an iterable, all equally likely; the rest is not kept (reservoir sampling)."""
    chosen: list[Entry] = []
    for number, entry in enumerate(entries):
        if number < count:
            chosen.append(entry)
        elif (place := random.randrange(number + 1)) < count:
            chosen[place] = entry
    return chosen
