"""The output directory for images of one prompt: whether it can be written, file names, the contact sheet."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn import disk
from medsyn.data.modalities import split_prefix
from medsyn.errors import InputError
from medsyn.generation.block_store import MANIFEST
from medsyn.records import ImageRecord

if TYPE_CHECKING:
    import numpy as np

SHEET = "contact_sheet.png"
SHEET_IMAGES = 100  # at most; of more images the first
_CAMPAIGNS = ("campaign.json", "ledger.jsonl")


def check_folder(name: str) -> None:
    """Raise InputError if the directory is part of a campaign, holds other images or is not writable."""
    source, directory = "output_dir", Path(name)
    if not name.strip():
        raise InputError(source, f"must name a directory, got {name!r}")
    try:
        folders = (directory.absolute(), *directory.absolute().parents)
        for folder in folders:
            if any((folder / name).exists() for name in _CAMPAIGNS):
                reason = f"{directory} is a campaign's directory or inside one ({folder}); choose another directory"
                raise InputError(source, reason)
        if (directory / MANIFEST).exists():
            reason = f"{directory} holds images of another run ({MANIFEST}); choose another directory"
            raise InputError(source, reason)
        existing = next(folder for folder in folders if folder.exists())
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


def file_name(number: int, record: ImageRecord) -> str:
    """The specification's names: `chest_xray_0.png`, filtered `Brain_MRI_1_selector_0.85_policy_0.92.png`."""
    prompt, selector, policy = record["prompt"], record["selector"], record["policy"]
    said = prompt.partition(":")[0] if split_prefix(prompt)[0] else record["modality"]
    words = re.sub(r"[^A-Za-z0-9]+", "_", said.replace("-", "")).strip("_")
    if selector is None:
        return f"{words.lower()}_{number}.png"
    return f"{words}_{number + 1}_selector_{selector:.2f}_policy_{policy:.2f}.png"


def contact_sheet(pictures: Sequence[np.ndarray]) -> bytes:
    """A PNG of all pictures, uint8 [H, W, C], in a roughly square grid; it is marked as synthetic, too."""
    import numpy as np

    from medsyn.generation.write.png import encode_png

    columns = math.ceil(math.sqrt(len(pictures)))
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.concatenate(padded[start : start + columns], axis=1) for start in range(0, len(padded), columns)]
    return encode_png(np.concatenate(rows), {"Contact sheet": f"{len(pictures)} images"})
