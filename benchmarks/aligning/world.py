"""A world that is wrong on purpose: captions that lie, poor images that are called excellent, raters who err.

Everything is a phantom, so the truth is known. A campaign that is fine-tuned on it learns to draw the wrong finding and
poor images; three raters say so of its samples, with noise.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from medsyn.data.phantoms.phantom import FINDINGS, MODALITY_OF, Label, Phantom, draw_phantom, parse_caption, render
from medsyn.seeds import seed

RENDERED = 128  # pixels of the written images
LYING, POOR = 0.4, 0.4  # shares of the training images
RATERS = 3
NOISE = 0.7  # of one rater, in steps of the scale from 1 to 3


@dataclass(frozen=True)
class Shown:
    """A training image and what its caption says of it."""

    phantom: Phantom
    caption: str

    @property
    def is_true(self) -> bool:
        """The caption names the finding and the side that are there."""
        return replace(self.phantom, quality=3).caption == self.caption

    @property
    def is_good(self) -> bool:
        """True, and not poor."""
        return self.is_true and self.phantom.quality > 1


def captions(kinds: Sequence[str]) -> list[str]:
    """Every text that asks for an excellent image of these kinds, in a fixed order."""
    drawn = {
        draw_phantom(kind, number, 0, quality=3, finding=finding).caption
        for kind in kinds
        for finding in FINDINGS[kind]
        for number in range(12)
    }
    return sorted(drawn)


def training_images(kinds: Sequence[str], count: int, world_seed: int, lying: float = LYING) -> list[Shown]:
    """`count` images of each kind: a share is poor and a share shows something else than its caption says.

    All captions say `excellent`.
    """
    shown = []
    for kind in kinds:
        others = captions([kind])
        rng = np.random.default_rng(seed("wrong world", world_seed, kind))
        for number in range(count):
            phantom = draw_phantom(kind, number, world_seed, quality=1 if rng.random() < POOR else 3)
            caption = replace(phantom, quality=3).caption
            if rng.random() < lying:
                caption = str(rng.choice([other for other in others if other != caption]))
            shown.append(Shown(phantom, caption))
    return shown


def write_training_images(shown: Sequence[Shown], folder: Path) -> None:
    """`metadata.csv` and its PNG files."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for number, one in enumerate(shown):
        file = f"images/{number:05d}.png"
        pixels = np.round(render(one.phantom, RENDERED) * 255).astype(np.uint8)
        Image.fromarray(pixels.squeeze()).save(folder / file)
        rows.append({"path": file, "Text": one.caption, "modality": MODALITY_OF[one.phantom.kind]})
    write_table(folder / "metadata.csv", rows)


def rate(right: np.ndarray, quality: np.ndarray, rater: int, world_seed: int) -> np.ndarray:
    """What one rater gives N images: 1 to 3.

    Args:
        right: bool [N], finding and side are those that were asked for; what is wrong deserves a 1.
        quality: int [N], 0 poor, 1 acceptable, 2 excellent.
        rater: whose noise it is.
        world_seed: of the noise.
    """
    rng = np.random.default_rng(seed("rater", world_seed, rater))
    deserved = np.where(right, quality, 0)
    return 1 + np.clip(np.round(deserved + NOISE * rng.standard_normal(len(deserved))), 0, 2).astype(int)


def label_of(caption: str) -> Label:
    """What a caption of the world asks for."""
    label = parse_caption(caption)
    assert label is not None, caption
    return label


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """A CSV table; its columns are those of the first row."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
