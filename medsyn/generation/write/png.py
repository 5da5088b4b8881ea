"""PNG files that state that they are synthetic and how they were made, and their records in the manifest.

A file's bytes are a function of its pixels and its record: no time, no host, no path.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image

from medsyn import __version__
from medsyn.data.images.read import SYNTHETIC_KEY
from medsyn.generation.block_store import Item, item_fingerprint
from medsyn.generation.filter import Candidate, Trial
from medsyn.modality_names import COLOUR_MODALITIES, base_modality
from medsyn.records import IMAGE_FILE, ImageRecord, fields

_AFTER_IHDR = 8 + 25  # bytes of the signature and of the first chunk
NOTICE = "Generated image. It shows no patient. Not for diagnosis."
# a file cannot contain its own name, size and hash
NOT_IN_THE_FILE = {one.name for one in fields(ImageRecord) if one.about.group == "file" or not one.about.is_text}
_SPREADS = ("selector_spread", "policy_spread", "unfamiliar")


def quantise(pixels: np.ndarray, modality: str) -> np.ndarray:
    """The picture as it is written, uint8 [H, W, 3] for a colour modality, else [H, W, 1], from [H, W, 3] in 0..1.

    The scorers see this one too: a recorded score is the score of the file.
    """
    if base_modality(modality) not in COLOUR_MODALITIES:
        pixels = pixels.mean(axis=2, keepdims=True)
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def file_name(item: Item) -> str:
    """The image's file name; the prompt list ensures that ids are unique and safe as file names."""
    return f"{item.prompt_id}_{item.replicate}.png"


def rejected_name(item: Item, attempt: int) -> str:
    """The file name of a candidate that did not become the image."""
    return f"{item.prompt_id}_{item.replicate}_{attempt}.png"


def encode_png(picture: np.ndarray, facts: Mapping[str, Any]) -> bytes:
    """A PNG file of uint8 pixels [H, W, 1 or 3], marked as synthetic, with a text chunk per value that is not None."""
    texts = {SYNTHETIC_KEY: "YES", "Notice": NOTICE, "Software": f"medsyn {__version__}", **facts}
    chunks = b"".join(_text_chunk(key, str(value)) for key, value in texts.items() if value is not None)
    stream = io.BytesIO()
    # After PNG's filters medical images repeat nothing but runs: to look for more takes three times as long and finds
    # nothing (benchmarks/storage.py).
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image.save(stream, format="PNG", compress_type=zlib.Z_RLE)
    with stream.getbuffer() as made:
        return b"".join((made[:_AFTER_IHDR], chunks, made[_AFTER_IHDR:]))


@lru_cache(256)  # most are those of the image before
def _text_chunk(key: str, text: str) -> bytes:
    """A text chunk of the PNG specification (3rd edition, 11.3.3), beyond Latin-1 an international one."""
    try:
        kind, content = b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeError:
        kind, content = b"iTXt", key.encode() + b"\0\0\0\0\0" + text.encode()
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_text(record: Mapping[str, Any]) -> dict[str, Any]:
    """The text chunks of an image's file, from its record in the manifest."""
    texts = {key: value for key, value in record.items() if key not in NOT_IN_THE_FILE}
    return {key.replace("_", " ").capitalize(): value for key, value in texts.items()}


def describe(item: Item, trial: Trial, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A settled item's record in the manifest, without the keys about its file.

    Args:
        item: what was requested.
        trial: what the filter made of it.
        facts: what all images of the mode share (`medsyn.generation.write.provenance`).
        settings: what holds unless the item overrides it.
    """
    winner = trial.winner
    return {
        "id": item.prompt_id,
        "prompt": item.prompt,
        "replicate": item.replicate,
        **facts,
        "accepted": trial.passed > 0,
        "reason": trial.reason,
        "attempts": trial.considered,
        "attempt": None if winner is None else winner.attempt,
        "seed": None if winner is None else winner.seed,
        "selector": None if winner is None else winner.selector,
        "policy": None if winner is None else winner.policy,
        **{key: None if winner is None else getattr(winner, key) for key in _SPREADS},
        "precision": None if winner is None else winner.precision,
        **{key: value if (own := getattr(item, key)) is None else own for key, value in settings.items()},
        "item_fingerprint": item_fingerprint(item),
        "extra": dict(item.extra),
    }


def publish(
    item: Item, trial: Trial, picture: np.ndarray | None, facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[ImageRecord, bytes | None]:
    """A settled item's record in the manifest, and its PNG file if it has an image.

    Args:
        item, trial, facts, settings: as for `describe`.
        picture: uint8 [H, W, 1 or 3] of the trial's favourite.
    """
    record = describe(item, trial, facts, settings)
    if trial.winner is None or picture is None:
        return cast(ImageRecord, record | dict.fromkeys(IMAGE_FILE)), None
    return _encoded(record, file_name(item), picture)


def publish_rejected(
    item: Item,
    trial: Trial,
    candidate: Candidate,
    picture: np.ndarray,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> tuple[ImageRecord, bytes]:
    """The record and the PNG file of a settled item's candidate that is not its image: like an image's, not accepted.

    Args:
        item, trial, facts, settings: as for `describe`.
        candidate: one of the trial's.
        picture: uint8 [H, W, 1 or 3] of the candidate.
    """
    keys = ("attempt", "seed", "selector", "policy", *_SPREADS, "precision")
    its_own = {key: getattr(candidate, key) for key in keys}
    record = describe(item, trial, facts, settings) | its_own
    record |= {"accepted": False, "reason": trial.why_not(candidate)}
    return _encoded(record, rejected_name(item, candidate.attempt), picture)


def _encoded(record: dict[str, Any], name: str, picture: np.ndarray) -> tuple[ImageRecord, bytes]:
    image = encode_png(picture, png_text(record))
    height, width, _ = picture.shape
    of_file = {
        "file": name,
        "bytes": len(image),
        "sha256": hashlib.sha256(image).hexdigest(),
        "width": width,
        "height": height,
    }
    return cast(ImageRecord, record | of_file), image
