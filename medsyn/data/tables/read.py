"""Two of the tables a campaign reads: the data set and the expert ratings (`medsyn.data.prompts.rows` has the third).

Everything wrong with a table is found in one pass and reported with line numbers. An error of the file as a whole (no
header, not UTF-8, broken quoting, …) raises; an error of one row is collected and the row skipped. The rules:

* UTF-8, with or without a byte order mark; commas; fields that hold commas or line breaks in double quotes.
* Columns are found by name in any order, ignoring case (`text` is read as `Text`); further ones are ignored.
* A file is named relative to the data directory, or absolutely inside it. `..`, URLs and symbolic links that leave it
  are refused; no file but the table itself is ever opened.
* Texts lose line breaks and invisible characters, and carry their modality: one without a prefix such as `CT:` or
  `Chest X-ray:` gets `{Modality}: `. Texts that are empty or say `nan` are refused.
* A row of the data set that repeats an earlier one is dropped; two ratings of one image are two raters.

This module imports neither torch nor pandas: login nodes check tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medsyn.data.modalities import MODALITIES, canonical_modality, says_nothing
from medsyn.data.tables.csv_rows import check_text_file, csv_records
from medsyn.data.tables.data_folder import IMAGE_SUFFIXES, DataFolder, Refused
from medsyn.data.tables.row_errors import Faults, show
from medsyn.data.tables.text_checks import check_modality, check_text
from medsyn.errors import InputError, InputProblems, Problem

__all__ = [
    "IMAGE_SUFFIXES",
    "MODALITIES",
    "ImageRow",
    "InputTable",
    "RatingRow",
    "canonical_modality",
    "read_dataset",
    "read_ratings",
]

_MAX_VOLUME = 2**15 - 1  # the limit of NIfTI-1

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One real image and its caption."""

    row: int  # 1-based line of the table
    file: str  # relative to the data directory, in one spelling however it was written
    path: Path  # absolute, inside the data directory
    text: str  # with its modality prefix
    modality: str
    patient_id: str | None
    volume: int | None = None  # of a 4-D NIfTI file, from 1


@dataclass(frozen=True, slots=True)
class RatingRow:
    """One rater's judgement of one image."""

    row: int
    file: str
    path: Path
    rating: int  # 1 poor, 2 acceptable, 3 excellent
    modality: str
    expert_level: int  # 1 to 3
    prompt: str
    volume: int | None = None  # of a 4-D NIfTI file, from 1


@dataclass(frozen=True)
class InputTable(Generic[Row]):
    """The good rows of a table in their order, and all its problems."""

    path: Path
    rows: list[Row]
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        """The problems that cost a row."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def require(self, strict: bool) -> list[Row]:
        """The good rows; raises `InputProblems` if there are none, or if `strict` and any row is bad."""
        if not self.rows or (strict and self.errors):
            raise InputProblems(self.errors or [Problem(str(self.path), "there are no rows")])
        return self.rows


def read_dataset(
    path: str | Path, root: str | Path | None = None, modality_column: str = "modality"
) -> InputTable[ImageRow]:
    """Read the data set: columns `path`, `Text`, `modality`, and `patient_id` (or `patient`) and `volume` if known.

    Args:
        path: the CSV file.
        root: the data directory, which contains every file; the table's own directory unless given.
        modality_column: name of the modality column, such as `modal`.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used.
    """
    path = Path(path)
    check_text_file(path)
    folder, faults = DataFolder(root or path.parent), Faults(str(path))
    settings = {modality_column: "data.modality_column"}
    rows: list[ImageRow] = []
    seen: set[tuple[str, int | None, str, str]] = set()
    seen_images: set[tuple[str, int | None]] = set()
    optional = ("patient_id", "patient", "volume")
    records = csv_records(faults, path, ("path", "Text", modality_column), optional, settings)
    for line, (written, caption, name, patient_id, patient, number) in records:
        file = _check_file(faults, line, "path", written, folder)
        volume = _check_volume(faults, line, number)
        modality = check_modality(faults, line, modality_column, name)
        checked = check_text(faults, line, "Text", caption, modality)
        if file is None or volume == 0 or modality is None or checked is None:
            continue
        key = (str(file), volume, checked, modality)
        if key in seen:
            faults.warn(line, None, "repeats an earlier row; only the first is kept")
            continue
        if key[:2] in seen_images:
            faults.warn(line, "path", "the same image as in an earlier row, with a different text or modality")
        seen.add(key)
        seen_images.add(key[:2])
        known = next((name for name in (patient_id, patient) if not says_nothing(name)), None)
        rows.append(ImageRow(line, folder.name(file), file, checked, modality, known, volume))
    return _table(path, rows, faults, folder)


def modalities_of(path: str | Path, modality_column: str = "modality") -> list[str]:
    """The modalities that a data set's rows have, in the order of the five; none if the table cannot be read.

    Nothing else of a row is checked: `read_dataset` reports what is wrong with it.
    """
    path, found = Path(path), set()
    try:
        check_text_file(path)
        for _, (name,) in csv_records(Faults(str(path)), path, (modality_column,)):
            found.add(canonical_modality(name))
            if found.issuperset(MODALITIES):
                break
    except InputError:
        return []
    return [modality for modality in MODALITIES if modality in found]


def read_ratings(path: str | Path, root: str | Path | None = None) -> InputTable[RatingRow]:
    """Read expert ratings: columns `image_path`, `rating`, `modality`, `expert_level`, `prompt`, and `volume` if known.

    Ratings (1 poor, 2 acceptable, 3 excellent) and expert levels are the integers 1 to 3; 2.5 is refused, not rounded.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used, or all its ratings are poor (1) or all are good
            (2 and 3), from which no Selector can be trained.
    """
    path = Path(path)
    check_text_file(path)
    folder, faults = DataFolder(root or path.parent), Faults(str(path))
    rows: list[RatingRow] = []
    columns = ("image_path", "rating", "modality", "expert_level", "prompt")
    for line, (written, grade, name, level, prompt, number) in csv_records(faults, path, columns, ("volume",)):
        file = _check_file(faults, line, "image_path", written, folder)
        volume = _check_volume(faults, line, number)
        rating = _check_grade(faults, line, "rating", grade)
        modality = check_modality(faults, line, "modality", name)
        expert_level = _check_grade(faults, line, "expert_level", level)
        checked = check_text(faults, line, "prompt", prompt, modality)
        if file is None or volume == 0 or rating is None or modality is None or expert_level is None or checked is None:
            continue
        rows.append(RatingRow(line, folder.name(file), file, rating, modality, expert_level, checked, volume))
    if rows and len({row.rating == 1 for row in rows}) == 1:
        missing = "no row is rated 1 (poor)" if rows[0].rating > 1 else "no row is rated 2 or 3 (good)"
        faults.refuse_file(None, "rating", f"cannot train the Selector, which needs both kinds: {missing}")
    return _table(path, rows, faults, folder)


def _table(path: Path, rows: list[Row], faults: Faults, folder: DataFolder) -> InputTable[Row]:
    """The table as it was read; raises `InputProblems` if the file as a whole cannot be used."""
    if not rows and not faults.errors:
        raise InputError(path, "there are no rows")
    if folder.asked and not folder.found:
        faults.error(None, None, f"none of its files is in {folder.path}; is that the data directory (data.root)?")
    if faults.file_refused:
        raise InputProblems(faults.errors)
    return InputTable(path, rows, faults.errors + faults.warnings())


# From a row's fields to values: a check reports what is wrong and returns None -------------------------------------


def _check_file(faults: Faults, row: int, key: str, written: str, folder: DataFolder) -> Path | None:
    try:
        return folder.find(written)
    except Refused as refused:
        faults.error(row, key, f"{show(written)} {refused}")
        return None


def _check_grade(faults: Faults, row: int, key: str, written: str) -> int | None:
    if written not in ("1", "2", "3"):
        faults.error(row, key, f"{show(written)} is not 1, 2 or 3 (whole numbers only)")
        return None
    return int(written)


def _check_volume(faults: Faults, row: int, written: str) -> int | None:
    """Which volume of its file a row is about, None if it does not say, 0 if it is wrong."""
    if not written:
        return None
    if not written.isdecimal() or not 0 < int(written) <= _MAX_VOLUME:
        faults.error(row, "volume", f"{show(written)} is not the number of a volume: 1, 2, ...")
        return 0
    return int(written)
