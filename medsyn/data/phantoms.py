"""Phantoms: procedural medical images whose caption is true by construction.

Six kinds of image, each with a finding, a side and a quality that the caption states. They are the embedded data set
and the ground truth of the tests: is the finding there, and on the right side?

Side is the patient's. Radiology images show the patient's right on the image's left; of an eye, the optic nerve is on
the image's right for a right eye. Normal radiology images have no side; an eye always has one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsyn import disk
from medsyn.data import phantom_images
from medsyn.errors import InputError
from medsyn.seeds import seed as seed_of
from medsyn.stage import slug

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


class Facts(NamedTuple):
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

    @property
    def facts(self) -> Facts:
        """What the caption states."""
        return Facts(self.kind, self.finding, self.side, self.quality)

    @property
    def caption(self) -> str:
        """The text that goes with the image."""
        return _caption(self.facts)

    @property
    def modality(self) -> str:
        """The canonical modality of the kind."""
        return MODALITY_OF[self.kind]


def _caption(facts: Facts) -> str:
    place = _PLACE_OF_FINDING.get(facts.finding, _PLACE[facts.kind])
    where = "" if facts.side is None else place.format(facts.side)
    return f"{facts.kind}: {facts.finding}{where}, {QUALITY_WORDS[facts.quality]} image quality"


def _sides(kind: str, finding: str) -> tuple[str | None, ...]:
    is_eye = kind in ("OCT", "Fundus")
    return ("left", "right") if is_eye or finding != FINDINGS[kind][0] else (None,)


_BY_CAPTION = {
    _caption(facts).casefold(): facts
    for kind in KINDS
    for finding in FINDINGS[kind]
    for side in _sides(kind, finding)
    for quality in QUALITY_WORDS
    for facts in [Facts(kind, finding, side, quality)]
}


def parse_caption(text: str) -> Facts | None:
    """What a phantom's caption states, or None for any other text."""
    return _BY_CAPTION.get(" ".join(text.split()).casefold())


def draw_phantom(
    kind: str,
    index: int,
    seed: int,
    quality: int | None = None,
    finding: str | None = None,
    side: str | None = None,
) -> Phantom:
    """Choose phantom number `index` of `kind`: a pure function of its arguments.

    Three consecutive indices (from a multiple of three) show each finding once, six show it on either side. What is
    given is kept, and the rest is chosen as if nothing had been given; a normal radiology image has no side.

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
    return Phantom(kind, finding, side, quality, index, seed)


def render(phantom: Phantom, size: int) -> np.ndarray:
    """The phantom's picture: float32 [size, size, C] in 0..1, C = 3 for Fundus and 1 otherwise."""
    return np.clip(draw_values(phantom, size), 0.0, 1.0)


def draw_values(phantom: Phantom, size: int, zoom: float = 1.0) -> np.ndarray:
    """`phantom_images.draw` of a phantom: display values that are not yet clipped."""
    key = (phantom.seed, phantom.kind, phantom.index)
    return phantom_images.draw(phantom.kind, phantom.finding, phantom.side, phantom.quality, key, size, zoom)


# -- the data set ------------------------------------------------------------------------------------------------------

_FORMATS = {
    "OCT": ("png",),
    "Fundus": ("jpg", "png"),
    "Chest X-ray": ("dcm", "png"),
    "Chest CT": ("dcm", "png"),
    "Brain MRI": ("nii.gz", "png"),
    "Breast MRI": ("nii.gz", "png"),
}
# Where the phantoms of each table start, multiples of six: no image is in two tables, whatever their sizes.
_FIRST_IMAGE, _FIRST_RATED, _FIRST_PROMPT = 0, 600_000, 1_200_000
_SECOND_RATER_ODDS = 0.15

Rows = list[tuple[str | int, ...]]


def write_dataset(
    directory: Path,
    images_per_kind: int,
    prompts_per_kind: int,
    image_size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the phantom data set: `metadata.csv`, `ratings.csv`, `prompts.csv` and the images that they name.

    Formats are as in real life: PNG and JPEG, DICOM for X-ray (some MONOCHROME1) and CT (in Hounsfield units), NIfTI
    volumes in several orientations for MRI. The same arguments give the same bytes. The directory appears whole, with
    `done.json` in it; when it is there, there is nothing to do.

    Args:
        directory: Where; created if needed.
        images_per_kind: Captioned images of each kind, and as many rated ones.
        prompts_per_kind: Prompts of each kind; all ask for excellent quality.
        image_size: Pixels per side.
        seed: Of all phantoms.
        progress: Called with (images written, images in all) after each image.

    Raises:
        InputError: `directory` holds phantoms of other settings, or something else.
    """
    settings = {
        "images_per_kind": images_per_kind,
        "prompts_per_kind": prompts_per_kind,
        "image_size": image_size,
        "seed": seed,
    }
    done = directory / "done.json"
    if done.exists():
        if disk.read_json(done) != settings:
            raise InputError(directory, f"holds phantoms of other settings ({disk.read_json(done)}); choose another")
        return
    if directory.exists() and any(directory.iterdir()):
        raise InputError(directory, "is not empty, and what it holds is not a finished phantom data set")

    from medsyn.data.phantom_files import encode  # pydicom and nibabel would slow a login node's answers

    files: dict[str, Phantom] = {}
    images, ratings, prompts = [], [], []
    for kind in KINDS:
        images += _images(kind, images_per_kind, seed, files)
        ratings += _ratings(kind, images_per_kind, seed, files)
        prompts += _prompts(kind, prompts_per_kind, seed)
    with disk.atomic_directory(directory) as temporary:
        for number, (file, phantom) in enumerate(files.items(), start=1):
            path = temporary / file
            disk.make_directory(path.parent)
            path.write_bytes(encode(phantom, image_size, path.name.partition(".")[2]))
            if progress is not None:
                progress(number, len(files))
        _write_table(temporary / "metadata.csv", ("path", "Text", "modality", "patient_id", "finding"), images)
        _write_table(temporary / "ratings.csv", ("image_path", "rating", "modality", "expert_level", "prompt"), ratings)
        _write_table(temporary / "prompts.csv", ("id", "prompt", "modality", "finding"), prompts)
        disk.write_json(temporary / done.name, settings)


def _images(kind: str, count: int, seed: int, files: dict[str, Phantom]) -> Rows:
    """Captioned images, one to three of each patient."""
    rng = np.random.default_rng(seed_of(seed, kind, "patients"))
    patients = np.repeat(np.arange(count), rng.integers(1, 4, size=count))
    rows: Rows = []
    for number in range(count):
        phantom = draw_phantom(kind, _FIRST_IMAGE + number, seed)
        file = _add_file(phantom, f"{number:05d}", files)
        patient = f"{slug(kind)}-{patients[number]:04d}"
        rows.append((file, phantom.caption, phantom.modality, patient, phantom.finding))
    return rows


def _ratings(kind: str, count: int, seed: int, files: dict[str, Phantom]) -> Rows:
    """Rated images, a third of each quality; an expert is right, a second rater often and of expert level 1.

    The prompt is what was asked for and the rating how it came out, so every prompt asks for excellence.
    """
    rng = np.random.default_rng(seed_of(seed, kind, "raters"))
    rows: Rows = []
    for number in range(count):
        quality = 1 + (number + number // 3) % 3
        phantom = draw_phantom(kind, _FIRST_RATED + number, seed, quality=quality)
        prompt = replace(phantom, quality=3).caption
        file = _add_file(phantom, f"rated-{number:05d}", files)
        rows.append((file, quality, phantom.modality, int(rng.integers(2, 4)), prompt))
        if rng.random() < _SECOND_RATER_ODDS:
            opinion = int(np.clip(quality + rng.integers(-1, 2), 1, 3))
            rows.append((file, opinion, phantom.modality, 1, prompt))
    return rows


def _prompts(kind: str, count: int, seed: int) -> Rows:
    phantoms = [draw_phantom(kind, _FIRST_PROMPT + number, seed, quality=3) for number in range(count)]
    return [(f"{slug(kind)}-{number:04d}", p.caption, p.modality, p.finding) for number, p in enumerate(phantoms)]


def _add_file(phantom: Phantom, name: str, files: dict[str, Phantom]) -> str:
    formats = _FORMATS[phantom.kind]
    file = f"images/{slug(phantom.kind)}/{name}.{formats[phantom.index % len(formats)]}"
    files[file] = phantom
    return file


def _write_table(path: Path, header: Sequence[str], rows: Rows) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    disk.write_atomic(path, text.getvalue())
