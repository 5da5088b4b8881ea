"""The embedded data set: phantom images of every modality with metadata.csv, ratings.csv and prompts.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsyn import disk
from medsyn.data.phantoms.phantom import KINDS, Phantom, draw_phantom
from medsyn.errors import InputError
from medsyn.seeds import seed as seed_of
from medsyn.stage import slug

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
    volumes in several orientations for MRI. The same arguments give the same bytes. The directory appears complete,
    with `done.json` in it; if that exists, nothing is done.

    Args:
        directory: Where to write; created if needed.
        images_per_kind: Captioned images of each kind, and as many rated ones.
        prompts_per_kind: Prompts of each kind; all request excellent quality.
        image_size: Pixels per side.
        seed: Of all phantoms.
        progress: Called with (images written, total) after each image.

    Raises:
        InputError: `directory` contains phantoms with different settings, or something else.
    """
    settings = {
        "images_per_kind": images_per_kind,
        "prompts_per_kind": prompts_per_kind,
        "image_size": image_size,
        "seed": seed,
    }
    done = directory / "done.json"
    if done.exists():
        if (found := disk.read_json(done)) != settings:
            raise InputError(directory, f"contains phantoms with other settings ({found}); choose another directory")
        return
    if directory.exists() and any(directory.iterdir()):
        raise InputError(directory, "is not empty and does not contain a complete phantom data set")

    from medsyn.data.phantoms.files import encode  # pydicom and nibabel would slow down commands on login nodes

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
    """Rated images, a third of each quality; an expert is right, a second rater is often right and of expert level 1.

    The prompt is the request and the rating the outcome, so every prompt requests excellence.
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
