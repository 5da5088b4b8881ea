"""Phantoms: procedural medical images whose caption is true by construction.

Six kinds of image, each with a finding, a side and a quality that the caption states. They are the embedded data set
and the ground truth of the tests: is the finding there, and on the right side?

Side is the patient's. Radiology images show the patient's right on the image's left; of an eye, the optic nerve is on
the image's right for a right eye. Normal radiology images have no side; an eye always has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from medsyn.data.phantoms import draw
from medsyn.seeds import seed as seed_of

KINDS = ("OCT", "Fundus", "Chest X-ray", "Chest CT", "Brain MRI", "Breast MRI")
MODALITY_OF = {
    "OCT": "OCT",
    "Fundus": "Fundus",
    "Chest X-ray": "X-Ray",
    "Chest CT": "CT",
    "Brain MRI": "MRI",
    "Breast MRI": "MRI",
}
# The first finding of each kind is the normal one.
FINDINGS: dict[str, tuple[str, ...]] = {
    "OCT": ("healthy retinal layers with clear foveal depression", "intraretinal cystoid fluid", "drusen"),
    "Fundus": ("healthy retina with clear optic disc", "hard exudates", "intraretinal haemorrhages"),
    "Chest X-ray": ("normal lung fields without infiltrates", "consolidation", "pleural effusion"),
    "Chest CT": ("normal lung parenchyma without nodules", "ground glass opacity", "solid mass"),
    "Brain MRI": ("normal anatomy", "enhancing mass", "oedema"),
    "Breast MRI": ("normal fibroglandular tissue", "enhancing mass", "cyst"),
}
# How the images are acquired. The embedded model was pre-trained on A alone, and every data set is of B: another
# hospital's devices and films. Anatomy and captions are the same (docs/embedded-model.md).
Protocol = Literal["A", "B"]
PROTOCOLS: tuple[Protocol, ...] = ("A", "B")
PRETRAINING: Protocol = "A"
CAMPAIGNS: Protocol = "B"
QUALITY_WORDS = {1: "poor", 2: "acceptable", 3: "excellent"}
_QUALITY_ODDS = (0.15, 0.15, 0.7)
_PLACE = {
    "OCT": ", {} eye",
    "Fundus": ", {} eye",
    "Chest X-ray": " in the {} lung",
    "Chest CT": " in the {} lung",
    "Brain MRI": " in the {} hemisphere",
    "Breast MRI": " in the {} breast",
}
_PLACE_OF_FINDING = {"pleural effusion": " at the {} lung base"}


class Label(NamedTuple):
    """What a caption states."""

    kind: str
    finding: str
    side: str | None
    quality: int


@dataclass(frozen=True)
class Phantom:
    """One phantom: what it shows, and the index and seed that its anatomy depends on."""

    kind: str
    finding: str
    side: str | None  # "left" or "right" of the patient; None: a normal radiology image
    quality: int  # 1 poor, 2 acceptable, 3 excellent
    index: int
    seed: int
    protocol: Protocol = CAMPAIGNS

    @property
    def label(self) -> Label:
        """What the caption states."""
        return Label(self.kind, self.finding, self.side, self.quality)

    @property
    def caption(self) -> str:
        """The text that goes with the image."""
        return _caption(self.label)

    @property
    def modality(self) -> str:
        """The canonical modality of the kind."""
        return MODALITY_OF[self.kind]


def _caption(label: Label) -> str:
    place = _PLACE_OF_FINDING.get(label.finding, _PLACE[label.kind])
    where = "" if label.side is None else place.format(label.side)
    return f"{label.kind}: {label.finding}{where}, {QUALITY_WORDS[label.quality]} image quality"


def _sides(kind: str, finding: str) -> tuple[str | None, ...]:
    is_eye = kind in ("OCT", "Fundus")
    return ("left", "right") if is_eye or finding != FINDINGS[kind][0] else (None,)


_BY_CAPTION = {
    _caption(label).casefold(): label
    for kind in KINDS
    for finding in FINDINGS[kind]
    for side in _sides(kind, finding)
    for quality in QUALITY_WORDS
    for label in [Label(kind, finding, side, quality)]
}


def parse_caption(text: str) -> Label | None:
    """What a phantom's caption states, or None for any other text."""
    return _BY_CAPTION.get(" ".join(text.split()).casefold())


def draw_phantom(
    kind: str,
    index: int,
    seed: int,
    quality: int | None = None,
    finding: str | None = None,
    side: str | None = None,
    protocol: Protocol = CAMPAIGNS,
) -> Phantom:
    """Choose phantom number `index` of `kind`: a pure function of its arguments.

    Three consecutive indices (from a multiple of three) show each finding once, six show it on either side. Given
    values are kept, and the others are chosen as if none had been given; a normal radiology image has no side.

    Raises:
        ValueError: The kind, the finding, the side or the quality is unknown.
    """
    if kind not in FINDINGS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")
    rng = np.random.default_rng(seed_of(seed, kind, "balance", index // 6))
    half = index // 3 % 2
    number = (rng.permutation(3), rng.permutation(3))[half][index % 3]
    finding = FINDINGS[kind][number] if finding is None else finding
    if finding not in FINDINGS[kind]:
        raise ValueError(f"unknown finding {finding!r} of {kind}: one of {', '.join(FINDINGS[kind])}")
    sides = _sides(kind, finding)
    if sides == (None,):
        side = None
    elif side is None:
        side = sides[(rng.integers(2, size=3)[number] + half) % 2]
    elif side not in sides:
        raise ValueError(f"unknown side {side!r}: left or right")
    if quality is None:
        quality = 1 + int(np.random.default_rng(seed_of(seed, kind, "quality", index)).choice(3, p=_QUALITY_ODDS))
    if quality not in QUALITY_WORDS:
        raise ValueError(f"unknown quality {quality!r}: 1 poor, 2 acceptable or 3 excellent")
    return Phantom(kind, finding, side, quality, index, seed, protocol)


def render(phantom: Phantom, size: int) -> np.ndarray:
    """The phantom's picture: float32 [size, size, C] in 0..1, C = 3 for Fundus and 1 otherwise."""
    return np.clip(draw_values(phantom, size), 0.0, 1.0)


def draw_values(phantom: Phantom, size: int, zoom: float = 1.0) -> np.ndarray:
    """`draw.draw` of a phantom: display values, not yet clipped; float32 [size, size, C]."""
    key = (phantom.seed, phantom.kind, phantom.index)
    return draw.draw(phantom.kind, phantom.finding, phantom.side, phantom.quality, key, size, zoom, phantom.protocol)
