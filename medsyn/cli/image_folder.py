"""The output directory for images of single prompts: whether it can be written, file names, what is there already.

Commands one after the other add to it, each with names of its own; nothing is overwritten but the contact sheet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn import disk
from medsyn.cli import app
from medsyn.data.modalities import split_prefix
from medsyn.errors import InputError, Problem
from medsyn.generation.block_store import MANIFEST
from medsyn.records import ImageRecord, json_types

if TYPE_CHECKING:
    from medsyn.cli.contact_sheet import Picture
    from medsyn.generation.api.generator import GeneratedImage

_OF_ALL_VERSIONS = {"id", "prompt", "mode", "replicate", "seed", "file", "sha256", "item_fingerprint", "synthetic"}
SHEET = "contact_sheet.png"
SHEET_IMAGES = 100  # at most; of more images the newest


def check_folder(name: str) -> None:
    """Raise InputError if the directory is part of a campaign, holds another program's images or is not writable."""
    source, directory = "output_dir", Path(name)
    if not name.strip():
        raise InputError(source, f"must name a directory, got {name!r}")
    try:
        app.require_no_campaign(directory, source)
        known = json_types(ImageRecord)
        if not all(_is_ours(record, known) for record in disk.read_jsonl(directory / MANIFEST)):
            reason = f"{directory / MANIFEST} was not written by this command; choose another directory"
            raise InputError(source, reason)
        existing = next(one for one in (directory, *directory.absolute().parents) if one.exists())
    except OSError as error:
        raise InputError(source, f"{directory!s:.100} cannot be written: {error.strerror}") from None
    if not existing.is_dir():
        raise InputError(source, f"{directory} cannot be written: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(source, f"{directory} cannot be written: {existing} is not writable")


def make_folder(directory: Path, source: str) -> Path:
    """Create the output directory; raise InputError if it cannot be written (a full disk, a read-only file system)."""
    try:
        disk.make_directory(directory.absolute())
        disk.write_atomic(directory / ".writable", "")
        (directory / ".writable").unlink()
    except OSError as error:
        raise InputError(source, f"{directory} cannot be written: {error.strerror}") from None
    return directory


class ImageFolder:
    """An output directory, and the images that are in it already."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.records: list[dict[str, Any]] = list(disk.read_jsonl(directory / MANIFEST))
        names = [path.name for path in directory.iterdir()] + [str(one["file"]) for one in self.records]
        self._taken = {_stem(name) for name in names}
        self._numbers: dict[str, Iterator[int]] = {}  # those not tried yet, by the words before them

    def add(self, image: GeneratedImage) -> Path | None:
        """Keep an image, or on record that there is none; return the image's file."""
        if image.png is None:
            disk.append_jsonl(self.directory / MANIFEST, dict(image.record))
            return None
        name = self._free_name(image.record)
        image.save(self.directory / name)
        record = {**image.record, "file": name}
        disk.append_jsonl(self.directory / MANIFEST, record)
        self.records.append(record)
        return self.directory / name

    def update_sheet(self) -> Path | None:
        """Write a contact sheet of the newest images; return its path, None if there is no image.

        An image that was removed is left off, and one that cannot be read, with a warning.
        """
        from medsyn.cli.contact_sheet import contact_sheet

        kept = (one for one in reversed(self.records) if one["file"] and (self.directory / one["file"]).is_file())
        newest = [*islice(kept, SHEET_IMAGES)][::-1]
        pictures = [picture for record in newest if (picture := self._picture(record))]
        if not pictures:
            return None
        disk.write_atomic(self.directory / SHEET, contact_sheet(pictures))
        return self.directory / SHEET

    def _free_name(self, record: ImageRecord) -> str:
        """The specification's names: `chest_xray_0.png`, filtered `Brain_MRI_1_selector_0.85_policy_0.92.png`."""
        prompt, selector, policy = record["prompt"], record["selector"], record["policy"]
        said = prompt.partition(":")[0] if split_prefix(prompt)[0] else record["modality"]
        words = re.sub(r"[^A-Za-z0-9]+", "_", said.replace("-", "")).strip("_")
        first, words = (0, words.lower()) if selector is None else (1, words)
        scores = "" if selector is None else f"_selector_{selector:.2f}_policy_{policy:.2f}"
        numbers = self._numbers.setdefault(words, count(first))
        number = next(number for number in numbers if f"{words}_{number}".casefold() not in self._taken)
        return f"{words}_{number}{scores}.png"

    def _picture(self, record: dict[str, Any]) -> Picture | None:
        import numpy as np
        from PIL import Image

        file = self.directory / record["file"]
        try:
            with disk.open_file(file) as stream, Image.open(stream, formats=["PNG"]) as picture:
                pixels = np.asarray(picture)
        except (OSError, ValueError, SyntaxError):  # Pillow's errors about a damaged PNG
            app.show_problems([Problem(str(file), "is damaged; it is not on the contact sheet", severity="warning")])
            return None
        lines = [re.sub(r"_selector_.*|\.png$", "", record["file"])]
        if record["selector"] is not None:
            lines.append(f"selector {record['selector']:.2f}  policy {record['policy']:.2f}")
        if not record["accepted"]:
            lines.append(f"not accepted: best of {record['attempts']}")
        return pixels.reshape(*pixels.shape[:2], -1), lines


def _stem(name: str) -> str:
    """What must be unique of an image's name: all before its scores, whatever its case."""
    return re.sub(r"_selector_.*|\.png$", "", name.casefold())


def _is_ours(record: dict[str, Any], known: Mapping[str, tuple[type, ...]]) -> bool:
    if not record.keys() >= _OF_ALL_VERSIONS:
        return False
    if not all(isinstance(record[key], types) for key, types in known.items() if key in record):
        return False
    return record["file"] is None or Path(record["file"]).name == record["file"]
