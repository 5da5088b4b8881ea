"""Ratings that Label Studio has exported, as CSV or as JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.data.tables.data_folder import IMAGE_SUFFIXES
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.text import and_more

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what it puts before the name of an uploaded file
_GRADE = re.compile(r"([123])\b")  # "2", "2 acceptable"
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
        name = _UPLOADED.sub("", Path(one.image).name)
        found, grade = files.get(name, []), _GRADE.match(str(one.rating))
        if grade is None:
            problems.append(Problem(str(path), f"{one.rating!r} is not 1, 2 or 3", one.row, "rating"))
        if len(found) != 1:
            places = f"there {len(found)} times: {and_more([str(file) for file in found], 3)}" if found else "not there"
            problems.append(Problem(str(path), f"{name!r} is {places}; looked for in {images}", one.row, "image"))
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
            return stream.read(64).lstrip()[:1] == b"["
    except OSError:
        return False


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
                if row["rating"]:
                    value = _plain(row["rating"])
                    if value is not None:
                        yield _Given(
                            table.line_num,
                            row["image"],
                            value,
                            row["modality"],
                            row["prompt"],
                            _name(row.get("annotator")),
                        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read: {error}") from None


_WANTED = "tasks need image, modality and prompt, and a control named 'rating' (docs/data.md, 'From other programs')"


def _plain(cell: str) -> Any:
    """The rating in a cell: a number, or a list of what was chosen."""
    try:
        value = json.loads(cell)
    except ValueError:
        return cell
    if isinstance(value, list):
        value = value[0] if value else None
    return _value(value) if isinstance(value, Mapping) else value


def _value(value: Mapping[str, Any]) -> Any:
    """What stars, a number or a choice say."""
    if "choices" in value:
        return value["choices"][0] if value["choices"] else None
    return value.get("rating", value.get("number"))


def _from_json(path: Path) -> Iterator[_Given]:
    try:
        tasks = disk.read_json(path)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(path, f"is not JSON: {error}") from None
    if not isinstance(tasks, list):
        raise InputError(path, "is not a list of tasks, as Label Studio exports them")
    for number, task in enumerate(tasks, 1):
        data = task.get("data") if isinstance(task, Mapping) else None
        missing = [name for name in _COLUMNS[:3] if not isinstance(data, Mapping) or name not in data]
        if data is None or missing:
            raise InputError(path, f"the task has no {missing[0]!r} in its data; {_WANTED}", row=number)
        for annotation in task.get("annotations") or ():
            chosen = [
                _value(part["value"])
                for part in annotation.get("result") or ()
                if part.get("from_name") == "rating" and isinstance(part.get("value"), Mapping)
            ]
            if chosen and chosen[0] is not None and not annotation.get("was_cancelled"):
                who = annotation.get("completed_by")
                rater = _name(who.get("id") if isinstance(who, Mapping) else who)
                yield _Given(number, str(data["image"]), chosen[0], str(data["modality"]), str(data["prompt"]), rater)


def _name(annotator: Any) -> str:
    """What a rater is called: by number, since a name or an address may stand behind it."""
    return f"annotator-{annotator}" if str(annotator).isdecimal() else "annotator"
