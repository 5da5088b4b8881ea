"""Images to search for copies in: real ones of data sets, with their patients, and synthetic files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from medsyn.data.images.own_record import own_record
from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import read_image
from medsyn.data.tables.read import read_dataset
from medsyn.data.tables.split import groups
from medsyn.errors import InputError, Problem
from medsyn.evaluation.memorization.search import Picture
from medsyn.modality_names import MODALITIES, base_modality

SIDE = 128  # pixels that images are compared at, where they have as many

Tell = Callable[[int, int], None]  # of how many are read, of how many


def real_pictures(
    tables: Sequence[Path], patient_column: str | None, tell: Tell, problems: list[Problem]
) -> Iterator[Picture]:
    """The images of data sets, each once.

    Args:
        tables: data sets (`path`, `Text`, `modality`, and the patients').
        patient_column: name of the patients' column, if its name does not say it.
        tell: called before each image.
        problems: bad rows, and files that cannot be read, are added.

    Raises:
        InputError, InputProblems: a table as a whole cannot be used.
    """
    for path in tables:
        table = read_dataset(path, patient_column=patient_column)
        problems += [*table.errors, *table.advice]
        group_of = groups(table.rows)
        images = {(row.file, row.volume): row for row in reversed(table.rows)}  # its first row
        for number, row in enumerate(reversed(images.values()), 1):
            tell(number, len(images))
            try:
                pixels = read_image(row.path, row.modality, row.volume).pixels
            except InputError as error:
                problems += error.problems
                continue
            name = row.file if row.volume is None else f"{row.file} (volume {row.volume})"
            yield Picture(name, base_modality(row.modality), grey(pixels), group_of[row.file])


def synthetic_pictures(
    files: Sequence[str], modality: str | None, tell: Tell, problems: list[Problem]
) -> Iterator[Picture]:
    """The images of files.

    Args:
        files: PNG, JPEG, DICOM or NIfTI files.
        modality: of those that do not say it themselves.
        tell: called before each.
        problems: files that cannot be read, or of which nothing says the modality, are added.
    """
    for number, file in enumerate(files, 1):
        tell(number, len(files))
        said = own_record(Path(file))[0] or modality
        if said is None:
            reason = f"does not say its modality: give --modality, one of {', '.join(MODALITIES)}"
            problems.append(Problem(file, reason))
            continue
        try:
            yield Picture(file, base_modality(said), grey(read_image(file, said).pixels))
        except InputError as error:
            problems += error.problems


def grey(pixels: np.ndarray) -> np.ndarray:
    """What is compared of an image, float32 [H, W, C] in 0..1: the whole of it on a square, uint8 [S, S]."""
    square = fit_square(pixels, min(SIDE, max(pixels.shape[:2])))
    return np.rint(square.mean(axis=2) * 255).astype(np.uint8)
