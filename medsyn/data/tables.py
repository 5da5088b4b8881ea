"""The three tables a campaign reads: the data set, the expert ratings and the prompt list.

Everything wrong with a table is found in one pass and told with line numbers. A fault of the file as a whole (no
header, not UTF-8, broken quoting, …) raises; a fault of one row is collected and the row left out. The rules:

* UTF-8, with or without a byte order mark; commas; fields that hold commas or line breaks in double quotes.
* Columns are found by name in any order, and case does not count (`text` is read as `Text`); further ones are ignored.
* A file is named relative to the data folder, or absolutely inside it. `..`, URLs and symbolic links that leave it
  are refused; no file but the table itself is ever opened.
* Texts lose line breaks and invisible characters, and carry their modality: one without a prefix such as `CT:` or
  `Chest X-ray:` gets `{Modality}: `. Texts that are empty or say `nan` are refused.
* A row of the data set that repeats an earlier one is dropped; two ratings of one image are two raters; a prompt that
  is listed twice is two prompts.

This module imports neither torch nor pandas: login nodes check tables.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medsyn.data.csv_rows import csv_records, read_text, text_records
from medsyn.data.faults import Faults, show
from medsyn.data.folder import IMAGE_SUFFIXES, DataFolder, Refused
from medsyn.data.modalities import (
    CLIP_TOKENS,
    MODALITIES,
    canonical_modality,
    clean_text,
    is_over_long,
    not_a_modality,
    says_nothing,
    split_prefix,
)
from medsyn.disk import fingerprint
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.stage import slug

__all__ = [
    "IMAGE_SUFFIXES",
    "MODALITIES",
    "ImageRow",
    "PromptRow",
    "RatingRow",
    "Table",
    "canonical_modality",
    "read_dataset",
    "read_prompts",
    "read_ratings",
]

_PROMPT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One real image and its caption."""

    row: int  # 1-based line of the table
    file: str  # relative to the data folder, in one spelling however it was written
    path: Path  # absolute, inside the data folder
    text: str  # with its modality prefix
    modality: str
    patient_id: str | None


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


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One picture to ask for."""

    row: int
    prompt_id: str  # safe as a file name, unique in the list
    prompt: str
    modality: str


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A table's good rows in their order, and everything that was found wrong with it."""

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
) -> Table[ImageRow]:
    """Read the data set: columns `path`, `Text`, `modality`, and `patient_id` (or `patient`) where it is known.

    Args:
        path: the CSV file.
        root: the data folder, which every file is in; the table's own folder unless given.
        modality_column: what the modality column is called, if it is called something else, such as `modal`.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used.
    """
    path = Path(path)
    text, folder, faults = read_text(path), DataFolder(root or path.parent), Faults(str(path))
    settings = {modality_column: "data.modality_column"}
    rows: list[ImageRow] = []
    seen: set[tuple[str, str, str]] = set()
    seen_files: set[str] = set()
    records = csv_records(faults, text, ("path", "Text", modality_column), ("patient_id", "patient"), settings)
    for line, (written, caption, name, patient_id, patient) in records:
        file = _check_file(faults, line, "path", written, folder)
        modality = _check_modality(faults, line, modality_column, name)
        checked = _check_text(faults, line, "Text", caption, modality)
        if file is None or modality is None or checked is None:
            continue
        key = (str(file), checked, modality)
        if key in seen:
            faults.warn(line, None, "repeats an earlier row, which is kept once")
            continue
        if key[0] in seen_files:
            faults.warn(line, "path", "the same image as in an earlier row, with another text or modality")
        seen.add(key)
        seen_files.add(key[0])
        known = next((name for name in (patient_id, patient) if not says_nothing(name)), None)
        rows.append(ImageRow(line, folder.name(file), file, checked, modality, known))
    return _table(path, rows, faults, folder)


def read_ratings(path: str | Path, root: str | Path | None = None) -> Table[RatingRow]:
    """Read expert ratings: columns `image_path`, `rating`, `modality`, `expert_level`, `prompt`.

    Ratings (1 poor, 2 acceptable, 3 excellent) and expert levels are the integers 1 to 3; 2.5 is refused, not rounded.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used, or all its ratings are poor (1) or all are good
            (2 and 3), from which no Selector can be trained.
    """
    path = Path(path)
    text, folder, faults = read_text(path), DataFolder(root or path.parent), Faults(str(path))
    rows: list[RatingRow] = []
    columns = ("image_path", "rating", "modality", "expert_level", "prompt")
    for line, (written, grade, name, level, prompt) in csv_records(faults, text, columns):
        file = _check_file(faults, line, "image_path", written, folder)
        rating = _check_grade(faults, line, "rating", grade)
        modality = _check_modality(faults, line, "modality", name)
        expert_level = _check_grade(faults, line, "expert_level", level)
        checked = _check_text(faults, line, "prompt", prompt, modality)
        if file is None or rating is None or modality is None or expert_level is None or checked is None:
            continue
        rows.append(RatingRow(line, folder.name(file), file, rating, modality, expert_level, checked))
    if rows and len({row.rating == 1 for row in rows}) == 1:
        missing = "no row is rated 1 (poor)" if rows[0].rating > 1 else "no row is rated 2 or 3 (good)"
        faults.refuse_file(None, "rating", f"cannot train the Selector, which needs both kinds: {missing}")
    return _table(path, rows, faults, folder)


def read_prompts(path: str | Path) -> Table[PromptRow]:
    """Read the prompt list: a `.csv` with the column `prompt` and optionally `modality` and `id`, or a `.txt`.

    A text file has one prompt per line; blank lines and lines that start with `#` are skipped. The modality comes
    from the column or else from the prompt's prefix (`Chest X-ray: ...`). A prompt without an `id` is named after its
    modality, its text and how often the list had it before, so the name does not depend on the order of the list.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".txt"):
        raise InputError(path, "a prompt list is a .csv or a .txt file")
    text, faults = read_text(path), Faults(str(path))
    rows: list[PromptRow] = []
    lines_of_ids: dict[str, int] = {}
    repeats: Counter[tuple[str, str]] = Counter()
    records = (
        text_records(faults, text) if suffix == ".txt" else csv_records(faults, text, ("prompt",), ("modality", "id"))
    )
    for line, (prompt, name, given) in records:
        modality = _check_modality(faults, line, "modality", name) if name else split_prefix(prompt)[0]
        checked = _check_text(faults, line, "prompt", prompt, modality)
        if checked and not modality and not name:
            way_out = f"start it with one of the five ({', '.join(MODALITIES)}) and a colon"
            faults.error(line, "prompt", f"{show(prompt)} names no modality; {way_out}")
        if modality is None or checked is None:
            continue
        repeats[modality, checked] += 1
        prompt_id = given or f"{slug(modality)}-{fingerprint([modality, checked, repeats[modality, checked]])[:16]}"
        first = lines_of_ids.setdefault(prompt_id.casefold(), line)
        if not _PROMPT_ID.fullmatch(prompt_id):
            faults.error(line, "id", f"{show(prompt_id)} is no file name: up to 64 letters, digits, '.', '_', '-'")
        elif first != line:
            faults.error(line, "id", f"{show(prompt_id)} is the id of line {first} already (case does not count)")
        else:
            rows.append(PromptRow(line, prompt_id, checked, modality))
    return _table(path, rows, faults)


def _table(path: Path, rows: list[Row], faults: Faults, folder: DataFolder | None = None) -> Table[Row]:
    """The table as it was read; raises `InputProblems` if the file as a whole is of no use."""
    if not rows and not faults.errors:
        raise InputError(path, "there are no rows")
    if folder is not None and folder.asked and not folder.found:
        faults.error(None, None, f"not one of its files is in {folder.path}; is that the data folder (data.root)?")
    if faults.file_refused:
        raise InputProblems(faults.errors)
    return Table(path, rows, faults.errors + faults.warnings())


# From a row's fields to values: a check tells what is wrong and returns None ---------------------------------------


def _check_file(faults: Faults, row: int, key: str, written: str, folder: DataFolder) -> Path | None:
    try:
        return folder.find(written)
    except Refused as refused:
        faults.error(row, key, f"{show(written)} {refused}")
        return None


def _check_modality(faults: Faults, row: int, key: str, written: str) -> str | None:
    modality = canonical_modality(written)
    if modality is None:
        faults.error(row, key, f"{show(written)} {not_a_modality(written)}")
    return modality


def _check_text(faults: Faults, row: int, key: str, written: str, modality: str | None) -> str | None:
    text = clean_text(written)
    said, body = split_prefix(text)
    if says_nothing(body):
        faults.error(row, key, f"{show(text)} says nothing; every row needs a text")
        return None
    if modality is None:
        return text
    if said is None:
        text = f"{modality}: {text}"
        faults.warn(row, key, "does not start with its modality, as in 'CT: ...'; it was added")
    elif said != modality:
        faults.warn(row, key, f"the text says {said}, the modality is {modality}")
    if is_over_long(text):
        faults.warn(row, key, f"longer than about {CLIP_TOKENS} CLIP tokens (an estimate); the rest is not read")
    return text


def _check_grade(faults: Faults, row: int, key: str, written: str) -> int | None:
    if written not in ("1", "2", "3"):
        faults.error(row, key, f"{show(written)} is not 1, 2 or 3 (whole numbers only)")
        return None
    return int(written)
