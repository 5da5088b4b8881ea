"""A small rating set and raters who answer it, as the page would save their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsyn import disk
from medsyn.rating.formats import ANSWERS_FORMAT, KEY_FORMAT, SetKey, seal

CASES, DECOYS, REPEATS, PAIRS = 12, 4, 4, 3
SET = "5" * 64
Rating = Callable[[str], int | None]  # of an image's name; None: not sure


def name(kind: str, number: int) -> str:
    """An opaque name, which tests can read."""
    return f"{kind}{number:04d}".ljust(12, "x")


def write_set(folder: Path, set_hash: str = SET) -> Path:
    """Write images below `folder`/images and the key of a set of them; return the key."""
    images: dict[str, Any] = {}
    for number in range(CASES + DECOYS):
        file = folder / "images" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(np.arange(256, dtype=np.uint8), number).reshape(16, 16)).save(file)
        is_real = number >= CASES
        images[name("image", number)] = {
            "kind": "real" if is_real else "generated",
            "file": str(file),
            "sha256": disk.sha256_file(file),
            "modality": "CT" if number % 2 else "MRI",
            "prompt": f"{'CT' if number % 2 else 'MRI'}: finding {number}",
            "prompt_id": None if is_real else f"p{number // 2}",
        }
    cases = {
        name("case", number): {"image": name("image", number), "decoy": number >= CASES, "repeat_of": None}
        for number in range(CASES + DECOYS)
    }
    for number in range(REPEATS):
        again = name("case", CASES + DECOYS + number)
        cases[again] = {"image": name("image", number), "decoy": False, "repeat_of": name("case", number)}
    pairs = {name("pair", n): (name("image", 2 * n), name("image", 2 * n + 1)) for n in range(PAIRS)}
    key = {"format": KEY_FORMAT, "id": set_hash[:12], "set": set_hash, "version": "0"}
    path = folder / f"set-{set_hash[:4]}.key.json"
    disk.write_json(path, key | {"images": images, "cases": cases, "pairs": pairs})
    return path


def answers(
    key: SetKey,
    rater: str,
    rate: Rating,
    choose: Callable[[int], str] = lambda number: "left",
    level: int = 3,
    started: str = "2026-01-01T10:00:00Z",
    only: Callable[[str], bool] = lambda item: True,
) -> dict[str, Any]:
    """A rater's file, sealed; cases come in the order of their names."""
    given: list[dict[str, Any]] = []
    for order, item in enumerate([*sorted(key.cases), *sorted(key.pairs)]):
        if not only(item):
            continue
        case = key.cases.get(item)
        rating = rate(key.cases[item].image) if case else None
        number = int(item[4:8]) if item[4:8].isdecimal() else order  # a real set's names say nothing
        choice = None if case else choose(number)
        given.append(
            {
                "item": item,
                "defects": ["noise"] if rating == 1 else [],
                "confidence": None,
                "note": "",
                "milliseconds": max(0, 4000 - 100 * order),
                "order": order,
                "shown": [case.image] if case else list(key.pairs[item]),
                "rating": rating,
                "choice": choice,
                "not_sure": rating is None and choice is None,
                "answered_at": started,
                "serial": order,
                "changes": 0,
                "window": {"low": 0, "high": 255},
                "zoom": 100,
            }
        )
    return seal(
        {
            "format": ANSWERS_FORMAT,
            "version": "0",
            "set": {"id": key.id, "hash": key.set},
            "rater": {"id": rater, "expert_level": level},
            "started_at": started,
            "exported_at": started.replace("T10", "T11"),
            "display": {
                "dark_patch": True,
                "bright_patch": True,
                "light": "dim",
                "width": 1200,
                "height": 800,
                "ratio": 100,
            },
            "answers": given,
            "drafts": [],
        }
    )


def write_answers(path: Path, tree: Mapping[str, Any]) -> Path:
    """Write a file of answers as it is."""
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path
