"""Everything wrong with tables and the images they name, found before hours of a cluster are spent on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsyn.data.contents import Contents, ImageKey, Picture, image_key, of_rows, same_pictures
from medsyn.data.images.read import read_image
from medsyn.data.prompts.formats import taken_for
from medsyn.data.prompts.rows import check_prompts
from medsyn.data.tables.pairs import PairImage, read_pairs
from medsyn.data.tables.read import ImageRow, RatingRow, read_dataset, read_ratings
from medsyn.data.tables.token_count import TokenCount
from medsyn.errors import InputError, InputProblems, Problem

# of a data set only: ratings may be of generated images
_SYNTHETIC = "is marked as synthetic ({}); generated images are used for training only if data.allow_synthetic is set"


@dataclass(frozen=True)
class Checked:
    """Tables and their images, as far as they could be read."""

    problems: list[Problem]
    contents: list[Contents]  # of each table that has a good row


@dataclass(frozen=True)
class _Table:
    """One table: its own problems, and its rows that name an image."""

    path: Path
    problems: list[Problem]
    rows: list[ImageRow | RatingRow]
    contents: Contents | None = None  # if they are not those of the rows
    pairs: list[PairImage] = field(default_factory=list)

    @property
    def images(self) -> list[ImageRow | RatingRow | PairImage]:
        """Everything of the table that names an image."""
        return [*self.rows, *self.pairs]


@dataclass(frozen=True)
class _Read:
    """One image: what is wrong with it, what marks it as generated, and what it is."""

    problems: list[Problem]
    mark: str = ""
    picture: Picture | None = None


def check_tables(
    paths: str | Path | Iterable[str | Path],
    root: str | Path | None = None,
    modality_column: str = "modality",
    allow_synthetic: bool = False,
    progress: Callable[[int, int], None] | None = None,
    patient_column: str | None = None,
    linked_roots: Iterable[str | Path] = (),
    tokens: TokenCount | None = None,
) -> list[Problem]:
    """Read the tables and every image that they name, one at a time, each once.

    Args:
        paths: data set, ratings, pairs and prompt tables, one or several; the header tells which one a table is.
        root: the directory that their files are in; each table's own unless given.
        modality_column: the data set's modality column.
        allow_synthetic: do not report images of a data set that are marked as generated.
        progress: called with (images read, total).
        patient_column: the data set's patient column; recognised by its name unless given.
        linked_roots: directories that symbolic links in `root` may lead to.
        tokens: of the model that will read the texts (`medsyn.models.tokenizer`); estimated unless given.

    Returns:
        Every problem, with the table, its line and, for a problem of an image, the image as the table names it.
    """
    return read_tables(
        paths, root, modality_column, allow_synthetic, progress, patient_column, linked_roots, tokens
    ).problems


def read_tables(
    paths: str | Path | Iterable[str | Path],
    root: str | Path | None = None,
    modality_column: str = "modality",
    allow_synthetic: bool = False,
    progress: Callable[[int, int], None] | None = None,
    patient_column: str | None = None,
    linked_roots: Iterable[str | Path] = (),
    tokens: TokenCount | None = None,
) -> Checked:
    """What the tables hold, besides what `check_tables` finds; arguments as there."""
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    folder, linked = None if root is None else Path(root), list(linked_roots)
    tables = [_read_table(path, folder, modality_column, patient_column, linked, tokens) for path in files]
    found = _read_images(tables, progress)
    pictures = {key: read.picture for key, read in found.items() if read.picture is not None}
    problems: list[Problem] = []
    for table in tables:
        problems += [*table.problems, *_repeated(table, pictures), *_of_images(table, found, allow_synthetic)]
    contents = [table.contents or of_rows(str(table.path), table.rows, pictures) for table in tables]
    return Checked(problems, [one for one in contents if one.parts])


def _read_images(tables: Iterable[_Table], progress: Callable[[int, int], None] | None) -> dict[ImageKey, _Read]:
    """Every image that the tables name, read once."""
    images = dict.fromkeys(image_key(row) for table in tables for row in table.images)
    found = {}
    for number, image in enumerate(images, 1):
        found[image] = _check_image(*image)
        if progress is not None:
            progress(number, len(images))
    return found


def _of_images(table: _Table, found: Mapping[ImageKey, _Read], allow_synthetic: bool) -> list[Problem]:
    """The problems of a table's images, each with the first row that names it."""
    problems: list[Problem] = []
    for image, row in {image_key(row): row for row in reversed(table.images)}.items():
        of_image, trains_generator = found[image].problems, isinstance(row, ImageRow)
        if (mark := found[image].mark) and trains_generator and not allow_synthetic:
            of_image = [*of_image, Problem(str(row.path), _SYNTHETIC.format(mark))]
        problems += (
            replace(one, source=str(table.path), reason=f"{row.file!r} {one.reason}", row=row.row, key=_key(row))
            for one in of_image
        )
    return sorted(problems, key=lambda problem: problem.row or 0)


def _key(row: ImageRow | RatingRow | PairImage) -> str:
    """The column that names a row's image."""
    if isinstance(row, PairImage):
        return row.column
    return "path" if isinstance(row, ImageRow) else "image_path"


def _read_table(
    path: Path,
    root: Path | None,
    modality_column: str,
    patient_column: str | None,
    linked: Sequence[str | Path],
    tokens: TokenCount | None,
) -> _Table:
    kind, _ = taken_for(path)
    try:
        if kind == "prompts":
            prompts = Contents(str(path), kind)
            return _Table(path, _with_kind(path, check_prompts(path, prompts.see_prompt, tokens)), [], prompts)
        if kind == "ratings":
            ratings = read_ratings(path, root, linked, tokens=tokens)
            return _Table(path, ratings.problems, [*ratings.rows])
        if kind == "pairs":
            pairs = read_pairs(path, root, linked, tokens=tokens)
            contents = Contents(str(path), kind)
            for pair in pairs.rows:
                contents.see_prompt(pair)
            images = [image for pair in pairs.rows for image in (pair.a, pair.b)]
            return _Table(path, pairs.problems, [], contents, images)
        dataset = read_dataset(path, root, modality_column, patient_column, linked, tokens=tokens)
        return _Table(path, dataset.problems + dataset.advice, [*dataset.rows])
    except (InputError, InputProblems) as error:
        return _Table(path, _with_kind(path, error.problems), [])


_KINDS = {"dataset": "data set", "ratings": "ratings table", "pairs": "table of pairs", "prompts": "prompt list"}


def _with_kind(path: Path, problems: Iterable[Problem]) -> list[Problem]:
    """The problems of a table that cannot be used; one of its header says what the table was taken for."""
    kind, why = taken_for(path)
    reason = f" (it was taken for a {_KINDS[kind]}, because {why})"
    return [replace(one, reason=one.reason + reason) if _is_of_header(one) else one for one in problems]


def _is_of_header(problem: Problem) -> bool:
    return problem.row == 1 and "there is no column" in problem.reason


def _repeated(table: _Table, pictures: Mapping[ImageKey, Picture]) -> list[Problem]:
    """A warning for each image that a table names in several ways, by links or as copies: it counts more than once."""
    linked = _same_files(table)
    told = {row.path for row, _ in linked}
    reasons = [(row, f"is the same file as {other.file!r} on line {other.row}, by a link") for row, other in linked]
    for row, other in same_pictures(table.rows, pictures, told):
        reasons.append((row, f"shows the same picture as {other.file!r} on line {other.row}"))
    return [
        Problem(str(table.path), f"{row.file!r} {reason}", row.row, _key(row), "warning") for row, reason in reasons
    ]


def _same_files(table: _Table) -> list[tuple[ImageRow | RatingRow, ImageRow | RatingRow]]:
    """(row, an earlier row) for every file that links name in several ways."""
    first: dict[tuple[int, int], ImageRow | RatingRow] = {}
    told: set[Path] = set()
    found = []
    for row in table.rows:
        try:
            status = row.path.stat()
        except OSError:  # reading it says why
            continue
        known = first.setdefault((status.st_dev, status.st_ino), row)
        if known.path != row.path and row.path not in told:
            told.add(row.path)
            found.append((row, known))
    return found


def _check_image(path: Path, modality: str, volume: int | None) -> _Read:
    try:
        image = read_image(path, modality, volume)
    except InputError as error:
        return _Read(error.problems)
    warnings = [Problem(str(path), f"was read, but {warning}", severity="warning") for warning in image.warnings]
    return _Read(warnings, image.mark, Picture.of(path, image))
