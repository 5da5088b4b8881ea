"""Everything wrong with tables and the images they name, found before hours of a cluster are spent on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from medsyn.data.images.read import read_image
from medsyn.data.prompts.formats import taken_for
from medsyn.data.prompts.rows import check_prompts
from medsyn.data.tables.read import ImageRow, RatingRow, read_dataset, read_ratings
from medsyn.errors import InputError, InputProblems, Problem

# of a data set only: ratings may be of generated images
_SYNTHETIC = "is marked as synthetic ({}); generated images are used for training only if data.allow_synthetic is set"
_ImageKey = tuple[Path, str, int | None]  # file, modality, volume


def check_tables(
    paths: str | Path | Iterable[str | Path],
    root: str | Path | None = None,
    modality_column: str = "modality",
    allow_synthetic: bool = False,
    progress: Callable[[int, int], None] | None = None,
    patient_column: str | None = None,
    linked_roots: Iterable[str | Path] = (),
) -> list[Problem]:
    """Read the tables and every image that they name, one at a time, each once.

    Args:
        paths: data set, ratings and prompt tables, one or several; the header tells which one a table is.
        root: the directory that their files are in; each table's own unless given.
        modality_column: the data set's modality column.
        allow_synthetic: do not report images of a data set that are marked as generated.
        progress: called with (images read, total).
        patient_column: the data set's patient column; recognised by its name unless given.
        linked_roots: directories that symbolic links in `root` may lead to.

    Returns:
        Every problem, with the table, its line and, for a problem of an image, the image as the table names it.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    folder, linked = None if root is None else Path(root), list(linked_roots)
    tables: list[tuple[list[Problem], list[ImageRow | RatingRow]]] = []
    for path in files:
        try:
            tables.append(_read_table(path, folder, modality_column, patient_column, linked))
        except (InputError, InputProblems) as error:
            tables.append((_with_kind(path, error.problems), []))
    found: dict[_ImageKey, tuple[list[Problem], str]] = {}
    total = len({_image(row) for _, rows in tables for row in rows})
    problems: list[Problem] = []
    for path, (of_table, rows) in zip(files, tables, strict=True):
        problems += [*of_table, *_same_files(path, rows)]
        reported: set[_ImageKey] = set()
        for row in rows:
            image = _image(row)
            if image in reported:
                continue
            reported.add(image)
            if image not in found:
                found[image] = _check_image(*image)
                if progress is not None:
                    progress(len(found), total)
            of_image, mark = found[image]
            trains_generator = isinstance(row, ImageRow)
            if mark and trains_generator and not allow_synthetic:
                of_image = [*of_image, Problem(str(row.path), _SYNTHETIC.format(mark))]
            key = "path" if trains_generator else "image_path"
            problems += (
                replace(problem, source=str(path), reason=f"{row.file!r} {problem.reason}", row=row.row, key=key)
                for problem in of_image
            )
    return problems


def _read_table(
    path: Path, root: Path | None, modality_column: str, patient_column: str | None, linked: Sequence[str | Path]
) -> tuple[list[Problem], list[ImageRow | RatingRow]]:
    """A table's own problems, and its rows that name an image."""
    kind, _ = taken_for(path)
    if kind == "prompts":
        return _with_kind(path, check_prompts(path)), []
    if kind == "ratings":
        ratings = read_ratings(path, root, linked)
        return ratings.problems, [*ratings.rows]
    dataset = read_dataset(path, root, modality_column, patient_column, linked)
    return dataset.problems + dataset.advice, [*dataset.rows]


_KINDS = {"dataset": "data set", "ratings": "ratings table", "prompts": "prompt list"}


def _with_kind(path: Path, problems: Iterable[Problem]) -> list[Problem]:
    """The problems of a table that cannot be used; one of its header says what the table was taken for."""
    kind, why = taken_for(path)
    reason = f" (it was taken for a {_KINDS[kind]}, because {why})"
    return [replace(one, reason=one.reason + reason) if _is_of_header(one) else one for one in problems]


def _is_of_header(problem: Problem) -> bool:
    return problem.row == 1 and "there is no column" in problem.reason


def _image(row: ImageRow | RatingRow) -> _ImageKey:
    return row.path, row.modality, row.volume


def _same_files(table: Path, rows: Iterable[ImageRow | RatingRow]) -> list[Problem]:
    """A warning for each file that a table names in several ways, by links: its image counts more than once."""
    first: dict[tuple[int, int], ImageRow | RatingRow] = {}
    told: set[Path] = set()
    problems = []
    for row in rows:
        try:
            status = row.path.stat()
        except OSError:  # reading it says why
            continue
        known = first.setdefault((status.st_dev, status.st_ino), row)
        if known.path != row.path and row.path not in told:
            told.add(row.path)
            reason = f"{row.file!r} is the same file as {known.file!r} on line {known.row}, by a link"
            key = "path" if isinstance(row, ImageRow) else "image_path"
            problems.append(Problem(str(table), reason, row.row, key, "warning"))
    return problems


def _check_image(path: Path, modality: str, volume: int | None) -> tuple[list[Problem], str]:
    """What is wrong with one image, and what marks it as generated."""
    try:
        image = read_image(path, modality, volume)
    except InputError as error:
        return error.problems, ""
    warnings = [Problem(str(path), f"was read, but {warning}", severity="warning") for warning in image.warnings]
    return warnings, image.mark
