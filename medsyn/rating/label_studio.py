"""Ratings that Label Studio has exported, as CSV or as JSON."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from medsyn import disk
from medsyn.data.tables.data_folder import IMAGE_SUFFIXES
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.modality_names import canonical_modality, not_a_modality
from medsyn.text import and_more

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what it puts before the name of an uploaded file
_GRADE = re.compile(
    r"\s*([123])(?:\.0+)?\s*(?:[:;)=]\D*|[.,-]?\s+\D*)?"
)  # "2", "2.0", "2 acceptable", "2: good"; not "2.5"
_COLUMNS = ("image", "modality", "prompt", "rating")


@dataclass(frozen=True)
class Rated:
    """One annotator's rating of one image."""

    row: int  # of the CSV file, or the place of the task in the JSON file, from 1
    file: Path
    rating: int
    modality: str
    prompt: str
    rater: str


@dataclass(frozen=True)
class _Given:
    """A rating as the file has it."""

    row: int
    image: str
    rating: Any
    modality: str
    prompt: str
    rater: str


def read_export(path: Path, images: Path) -> list[Rated]:
    """The ratings of an export; skipped tasks and annotations without a rating are left out.

    Args:
        path: the export. It needs `image`, `modality` and `prompt` as the tasks were imported, and a control (stars, a
            number or a choice) that is named `rating`.
        images: the folder that the images were uploaded from; they are found by name.

    Raises:
        InputError: it is no such export.
        InputProblems: ratings that are not 1, 2 or 3, or images that are not there; all of them.
    """
    given = list(_from_csv(path) if path.suffix.lower() == ".csv" else _from_json(path))
    if not given:
        raise InputError(path, "has no ratings: is the control in Label Studio named 'rating'?")
    files = _by_name(images)
    rated, problems = [], []
    for one in given:
        name = _file_name(one.image)
        plain = _UPLOADED.sub("", name)
        found = files.get(name) or files.get(plain, [])
        grade = _GRADE.fullmatch(str(one.rating))
        for column in ("modality", "prompt"):
            if not getattr(one, column).strip():
                problems.append(Problem(str(path), f"there is none; {_WANTED}", one.row, column))
        if one.modality.strip() and canonical_modality(one.modality) is None:
            reason = f"{one.modality!r} {not_a_modality(one.modality)}"
            problems.append(Problem(str(path), reason, one.row, "modality"))
        if grade is None:
            problems.append(Problem(str(path), f"{repr(one.rating)[:60]} is not 1, 2 or 3", one.row, "rating"))
        if len(found) != 1:
            places = f"there {len(found)} times: {and_more([str(file) for file in found], 3)}" if found else "not there"
            problems.append(Problem(str(path), f"{plain!r} is {places}; looked for in {images}", one.row, "image"))
        elif grade is not None:
            rated.append(Rated(one.row, found[0], int(grade[1]), one.modality, one.prompt, one.rater))
    if problems:
        raise InputProblems(problems)
    return rated


def is_export(path: Path) -> bool:
    """Whether a file is one of Label Studio's, not one of the rating page's."""
    if path.suffix.lower() == ".csv":
        return True
    try:
        with disk.open_file(path) as stream:
            return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    except OSError:
        return False


def _file_name(image: str) -> str:
    """The name of an image's file in an address: of an upload, of local files (`?d=FOLDER/FILE`), of a store."""
    parts = urlsplit(image)
    local = parse_qs(parts.query).get("d")
    if local:
        return PurePosixPath(local[0]).name
    is_address = parts.scheme != "" or image.startswith("/")
    return PurePosixPath(unquote(parts.path) if is_address else image).name


def _by_name(images: Path) -> dict[str, list[Path]]:
    if not images.is_dir():
        raise InputError(images, "is not a folder: --images names the one that images were uploaded from")
    found: dict[str, list[Path]] = {}
    for path in sorted(images.rglob("*")):
        if path.name.lower().endswith(IMAGE_SUFFIXES) and path.is_file():
            found.setdefault(path.name, []).append(path)
    return found


def _from_csv(path: Path) -> Iterator[_Given]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise InputError(path, f"there is no column {missing[0]!r}; {_WANTED}", row=1, key=missing[0])
            for row in table:
                value = _plain(row["rating"] or "")
                if value is not None:
                    image, modality, prompt = (row[name] or "" for name in _COLUMNS[:3])
                    yield _Given(table.line_num, image, value, modality, prompt, _name(row.get("annotator")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read: {error}") from None


_WANTED = "tasks need image, modality and prompt, and a control named 'rating' (docs/data.md, 'From other programs')"


def _plain(cell: str) -> Any:
    """The rating in a cell: a number, or a list of what was chosen; None if there is none."""
    try:
        value = disk.from_json(cell) if cell else None
    except ValueError:
        return cell
    if isinstance(value, list):
        value = value[0] if value else None
    return _value(value) if isinstance(value, Mapping) else value


def _value(value: Mapping[str, Any]) -> Any:
    """What stars, a number or a choice say."""
    if "choices" in value:
        chosen = value["choices"]
        return (chosen[0] if chosen else None) if isinstance(chosen, list) else chosen
    return value.get("rating", value.get("number"))


def _from_json(path: Path) -> Iterator[_Given]:
    try:
        with disk.open_file(path) as stream:
            tasks = disk.from_json(stream.read().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(path, f"is not JSON: {error}") from None
    if not isinstance(tasks, list):
        raise InputError(path, "is not a list of tasks, as Label Studio exports them")
    for number, task in enumerate(tasks, 1):
        data = task.get("data") if isinstance(task, Mapping) else None
        missing = [name for name in _COLUMNS[:3] if not isinstance(data, Mapping) or name not in data]
        if not isinstance(data, Mapping) or missing:
            hint = " (export as JSON, not JSON-MIN)" if data is None else ""
            raise InputError(path, f"the task has no {missing[0]!r} in its data{hint}; {_WANTED}", row=number)
        image, modality, prompt = ("" if data[name] is None else str(data[name]) for name in _COLUMNS[:3])
        try:
            for rater, rating in _annotated(task):
                yield _Given(number, image, rating, modality, prompt, rater)
        except (AttributeError, KeyError, TypeError):
            reason = "the task's annotations are not as Label Studio exports them"
            raise InputError(path, reason, row=number, key="annotations") from None


def _annotated(task: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(rater, rating) of every annotation that has one and was not cancelled."""
    found = []
    for annotation in task.get("annotations") or ():
        chosen = [
            _value(part["value"])
            for part in annotation.get("result") or ()
            if part.get("from_name") == "rating" and isinstance(part.get("value"), Mapping)
        ]
        if chosen and chosen[0] is not None and not annotation.get("was_cancelled"):
            who = annotation.get("completed_by")
            found.append((_name(who.get("id") if isinstance(who, Mapping) else who), chosen[0]))
    return found


def _name(annotator: Any) -> str:
    """What a rater is called: by number, since a name or an address may stand behind it."""
    return f"annotator-{annotator}" if str(annotator).isdecimal() else "annotator"
