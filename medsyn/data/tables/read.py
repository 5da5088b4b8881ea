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

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from medsyn.data.modalities import says_nothing
from medsyn.data.tables.csv_rows import check_text_file, column_places, csv_records, csv_rows, require_csv, text_lines
from medsyn.data.tables.data_folder import IMAGE_SUFFIXES, DataFolder, Refused
from medsyn.data.tables.identifiers import patient_columns
from medsyn.data.tables.row_errors import Faults, show
from medsyn.data.tables.text_checks import check_modality, check_text
from medsyn.data.tables.token_count import TokenCount
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.modality_names import MODALITIES, canonical_modality

if TYPE_CHECKING:
    from medsyn.config import DataSection

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageRow",
    "InputTable",
    "RatingRow",
    "read_dataset",
    "read_ratings",
]

_MAX_VOLUME = 2**15 - 1  # the limit of NIfTI-1
_GRADE = re.compile(r"([123])(?:\.0*)?")  # pandas writes 2.0 where another cell of the column is empty

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One real image and its caption."""

    row: int  # 1-based line of the table
    file: str  # relative to the data directory, in one spelling however it was written
    path: Path  # absolute, inside the data directory
    text: str  # with its modality prefix
    modality: str
    patient_id: str | None  # as the table writes it; never written anywhere
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
    patient_id: str | None = None
    volume: int | None = None  # of a 4-D NIfTI file, from 1
    group: str | None = None  # the family that the image belongs to: an image and degraded copies of it, say
    rater: str | None = None  # who judged, under any name


@dataclass(frozen=True)
class InputTable(Generic[Row]):
    """The good rows of a table in their order, and all its problems."""

    path: Path
    rows: list[Row]
    problems: list[Problem]
    advice: list[Problem] = field(default_factory=list)  # warnings about the whole table, for those who check it

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
    path: str | Path,
    root: str | Path | None = None,
    modality_column: str = "modality",
    patient_column: str | None = None,
    linked_roots: Iterable[str | Path] = (),
    modalities: Collection[str] = MODALITIES,
    tokens: TokenCount | None = None,
) -> InputTable[ImageRow]:
    """Read the data set: columns `path`, `Text`, `modality`, and the patients' and `volume` if there are any.

    Args:
        path: the CSV file.
        root: the data directory, which contains every file; the table's own directory unless given.
        modality_column: name of the modality column, such as `modal`.
        patient_column: name of the patients' column; recognised by its name (`patient_id`, `Subject`, …) unless given.
        linked_roots: directories that symbolic links in the data directory may lead to.
        modalities: those that a row may belong to, besides the five: `Brain MRI`. It belongs to the most specific one.
        tokens: of the model that will read the captions; their lengths are estimated unless given.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used.
    """
    path = Path(path)
    require_csv(path)
    check_text_file(path)
    folder, faults = DataFolder(root or path.parent, linked_roots), Faults(str(path), tokens=tokens)
    columns = _Columns(faults, ("path", "Text", modality_column), modality_column, patient_column)
    rows: list[ImageRow] = []
    seen: set[tuple[str, int | None, str, str]] = set()
    seen_images: set[tuple[str, int | None]] = set()
    for line, (written, caption, name, patient, number) in columns.records(path):
        file = check_file(faults, line, "path", written, folder)
        volume = check_volume(faults, line, number)
        modality = check_modality(faults, line, modality_column, name, caption, modalities)
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
        if patient is None and columns.patient:
            faults.warn(line, columns.patient, "is empty: the image counts as one of a patient of its own")
        rows.append(ImageRow(line, folder.name(file), file, checked, modality, patient, volume))
    table = require_table(path, rows, faults, folder)
    if columns.patient is None and len(rows) > 1:
        return replace(table, advice=[Problem(str(path), _NO_PATIENTS, severity="warning")])
    return table


def dataset_of(data: DataSection, tokens: TokenCount | None = None) -> InputTable[ImageRow]:
    """Read the data set that a configuration names; raises as `read_dataset` does."""
    columns = data.modality_column, data.patient_column
    return read_dataset(data.table, data.root, *columns, data.linked_roots, data.modalities, tokens)


def ratings_of(data: DataSection, tokens: TokenCount | None = None) -> InputTable[RatingRow]:
    """Read the ratings that a resolved configuration names; raises as `read_ratings` does."""
    return read_ratings(str(data.ratings_file), data.root, data.linked_roots, data.modalities, tokens)


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


def read_ratings(
    path: str | Path,
    root: str | Path | None = None,
    linked_roots: Iterable[str | Path] = (),
    modalities: Collection[str] = MODALITIES,
    tokens: TokenCount | None = None,
) -> InputTable[RatingRow]:
    """Read expert ratings: columns `image_path`, `rating`, `modality`, `expert_level`, `prompt`.

    `volume`, `patient_id`, `group` and `rater` may be there, too.

    Ratings (1 poor, 2 acceptable, 3 excellent) and expert levels are the integers 1 to 3, also written 2.0; 2.5 is
    refused, not rounded. Arguments are those of `read_dataset`.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used, or all its ratings are poor (1) or all are good
            (2 and 3), from which no Selector can be trained.
    """
    path = Path(path)
    require_csv(path)
    check_text_file(path)
    folder, faults = DataFolder(root or path.parent, linked_roots), Faults(str(path), tokens=tokens)
    rows: list[RatingRow] = []
    columns = _Columns(
        faults, ("image_path", "rating", "modality", "expert_level", "prompt"), optional=("group", "rater")
    )
    for line, (written, grade, name, level, prompt, patient, number, family, rater) in columns.records(path):
        file = check_file(faults, line, "image_path", written, folder)
        volume = check_volume(faults, line, number)
        rating = _check_grade(faults, line, "rating", grade)
        modality = check_modality(faults, line, "modality", name, prompt, modalities)
        expert_level = _check_grade(faults, line, "expert_level", level)
        checked = check_text(faults, line, "prompt", prompt, modality)
        if file is None or volume == 0 or rating is None or modality is None or expert_level is None or checked is None:
            continue
        of_image = folder.name(file), file, rating, modality, expert_level, checked, patient, volume
        rows.append(RatingRow(line, *of_image, family or None, rater or None))
    if rows and len({row.rating == 1 for row in rows}) == 1:
        missing = "no row is rated 1 (poor)" if rows[0].rating > 1 else "no row is rated 2 or 3 (good)"
        faults.refuse_file(None, "rating", f"cannot train the Selector, which needs both kinds: {missing}")
    return require_table(path, rows, faults, folder)


_NO_PATIENTS = (
    "it has no patient column: images of one patient may be on both sides of the held-out split; add patient_id, or "
    "name the column with data.patient_column (data.patient_column=path says that each image is of another patient)"
)


class _Columns:
    """The columns of a table that has one row for each image or rating: the required ones, the patients', `volume`."""

    def __init__(
        self,
        faults: Faults,
        required: Sequence[str],
        modality_column: str = "",
        patient_column: str | None = None,
        optional: Sequence[str] = (),
    ) -> None:
        self.patient = patient_column  # as the header has it, once that is read
        self._faults = faults
        self._required = required
        self._optional = optional
        self._settings = {modality_column: "data.modality_column"}
        if patient_column:
            self._settings[patient_column] = "data.patient_column"

    def records(self, path: Path) -> Iterator[tuple[int, list[Any]]]:
        """(line, [required columns, the patient or None, the volume's text, optional columns]) for every row."""
        for line, row in csv_rows(self._faults, text_lines(path), self._places):
            patient = row.get(self.patient, "") if self.patient else ""
            known = None if says_nothing(patient) else patient
            further = (row.get(column, "") for column in ("volume", *self._optional))
            yield line, [*(row[column] for column in self._required), known, *further]

    def _places(self, header: list[str]) -> dict[str, int]:
        required = list(dict.fromkeys([*self._required, *([self.patient] if self.patient else [])]))
        optional = ("volume", *self._optional, *(() if self.patient else ("patient_id", "patient")))
        places = column_places(self._faults.source, header, required, optional, self._settings)
        if self.patient is None:
            found = [name for name in ("patient_id", "patient") if name in places] or patient_columns(header)
            if len(found) > 1 and found[0] != "patient_id":
                reason = f"{' and '.join(map(show, found))} look like patients: say which is with data.patient_column"
                raise InputError(self._faults.source, reason, row=1, key=", ".join(found))
            if found:
                self.patient = found[0]
                places |= column_places(self._faults.source, header, found[:1], (), {})
        return places


def require_table(path: Path, rows: list[Row], faults: Faults, folder: DataFolder) -> InputTable[Row]:
    """The table as it was read; raises `InputProblems` if the file as a whole cannot be used."""
    if not rows and not faults.errors:
        raise InputError(path, "there are no rows")
    if folder.asked and not folder.found:
        faults.error(None, None, f"none of its files is in {folder.path}; is that the data directory (data.root)?")
    if faults.file_refused:
        raise InputProblems(faults.errors)
    return InputTable(path, rows, faults.errors + faults.warnings())


# From a row's fields to values: a check reports what is wrong and returns None -------------------------------------


def check_file(faults: Faults, row: int, key: str, written: str, folder: DataFolder) -> Path | None:
    """The file that a row names, if it is a file of the data directory."""
    try:
        return folder.find(written)
    except Refused as refused:
        faults.error(row, key, f"{show(written)} {refused}")
        return None


def _check_grade(faults: Faults, row: int, key: str, written: str) -> int | None:
    grade = _GRADE.fullmatch(written)
    if grade is None:
        way_out = "" if written else "; remove the row if there is none"
        faults.error(row, key, f"{show(written)} is not 1, 2 or 3 (whole numbers only){way_out}")
        return None
    return int(grade[1])


def check_volume(faults: Faults, row: int, written: str, key: str = "volume") -> int | None:
    """Which volume of its file a row is about, None if it does not say, 0 if it is wrong."""
    if not written:
        return None
    if not written.isdecimal() or not 0 < int(written) <= _MAX_VOLUME:
        faults.error(row, key, f"{show(written)} is not the number of a volume: 1, 2, ...")
        return 0
    return int(written)
