"""Everything wrong with tables and the images they name, found before hours of a cluster are spent on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsyn.data.contents import Contents, image_key, of_rows, same_pictures
from medsyn.data.prompts.formats import taken_for
from medsyn.data.prompts.rows import check_prompts
from medsyn.data.read_images import Found, Limit, Progress, read_images
from medsyn.data.tables.pairs import PairImage, read_pairs
from medsyn.data.tables.read import ImageRow, RatingRow, read_dataset, read_ratings
from medsyn.data.tables.token_count import TokenCount
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.modality_names import MODALITIES

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
class Reading:
    """How tables are read: what a configuration's `data` says, under the names that it has there."""

    root: Path | None = None  # the directory of the files; each table's own unless given
    modality_column: str = "modality"  # the data set's
    patient_column: str | None = None  # the data set's; recognised by its name unless given
    linked_roots: Sequence[str | Path] = ()  # directories that symbolic links in `root` may lead to
    modalities: Collection[str] = MODALITIES  # those that a row may belong to, besides the five
    allow_synthetic: bool = False  # do not report images of a data set that are marked as generated
    tokens: TokenCount | None = None  # of the model that will read the texts; estimated unless given


def check_tables(
    paths: str | Path | Iterable[str | Path],
    root: str | Path | None = None,
    modality_column: str = "modality",
    allow_synthetic: bool = False,
    progress: Progress | None = None,
    patient_column: str | None = None,
    linked_roots: Iterable[str | Path] = (),
    tokens: TokenCount | None = None,
    modalities: Collection[str] = MODALITIES,
) -> list[Problem]:
    """Read the tables and every image that they name, each once.

    Args:
        paths: data set, ratings, pairs and prompt tables, one or several; the header tells which one a table is.
        root: the directory that their files are in; each table's own unless given.
        modality_column: the data set's modality column.
        allow_synthetic: do not report images of a data set that are marked as generated.
        progress: called with (images read, total); not for images that are known from an earlier check.
        patient_column: the data set's patient column; recognised by its name unless given.
        linked_roots: directories that symbolic links in `root` may lead to.
        tokens: of the model that will read the texts (`medsyn.models.tokenizer`); estimated unless given.
        modalities: those that a row may belong to, besides the five: `Brain MRI`.

    Returns:
        Every problem, with the table, its line and, for a problem of an image, the image as the table names it.
    """
    files = [paths] if isinstance(paths, (str, Path)) else paths
    folder, linked = None if root is None else Path(root), list(linked_roots)
    how = Reading(folder, modality_column, patient_column, linked, modalities, allow_synthetic, tokens)
    return read_tables(files, how, progress).problems


def read_tables(paths: Iterable[str | Path], how: Reading, progress: Progress | None = None) -> Checked:
    """What the tables hold, besides what `check_tables` finds; arguments as there."""
    tables = [_read_table(Path(path), how) for path in paths]
    problems, found = _check_images(tables, how.allow_synthetic, progress, None)
    contents = [table.contents or of_rows(str(table.path), table.rows, found.pictures) for table in tables]
    return Checked(problems, [one for one in contents if one.parts])


def check_images(
    rows: Mapping[Path, Sequence[ImageRow | RatingRow | PairImage]],
    allow_synthetic: bool,
    progress: Progress | None = None,
    limit: Limit | None = None,
) -> tuple[list[Problem], int]:
    """What is wrong with the images of tables that have been read.

    Args:
        rows: the good ones of each table.
        allow_synthetic: do not report images of a data set that are marked as generated.
        progress: called with (images read, total); not for images that are known from an earlier check.
        limit: the most that is read. Over it, nothing is, and only what is known is told.

    Returns:
        The problems, as `check_tables` returns them, and how many images were not read.
    """
    tables = [
        _Table(
            *(path, [], [row for row in its if not isinstance(row, PairImage)]),
            pairs=[row for row in its if isinstance(row, PairImage)],
        )
        for path, its in rows.items()
    ]
    problems, found = _check_images(tables, allow_synthetic, progress, limit)
    return problems, found.unread


def _check_images(
    tables: Sequence[_Table], allow_synthetic: bool, progress: Progress | None, limit: Limit | None
) -> tuple[list[Problem], Found]:
    """The problems of tables and images, table by table, and what the images are."""
    found = read_images({table.path: [image_key(row) for row in table.images] for table in tables}, progress, limit)
    problems: list[Problem] = []
    for table in tables:
        problems += [*table.problems, *_repeated(table, found), *_of_images(table, found, allow_synthetic)]
    return problems, found


def _of_images(table: _Table, found: Found, allow_synthetic: bool) -> list[Problem]:
    """The problems of a table's images, each with the first row that names it."""
    problems: list[Problem] = []
    for image, row in {image_key(row): row for row in reversed(table.images)}.items():
        of_image = found.refused.get(image, [])
        if seen := found.seen.get(image):
            of_image = [
                Problem(str(row.path), f"was read, but {warning}", severity="warning") for warning in seen.warnings
            ]
            if seen.mark and isinstance(row, ImageRow) and not allow_synthetic:
                of_image.append(Problem(str(row.path), _SYNTHETIC.format(seen.mark)))
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


def _read_table(path: Path, how: Reading) -> _Table:
    kind, _ = taken_for(path)
    try:
        if kind == "prompts":
            prompts = Contents(str(path), kind)
            problems = check_prompts(path, prompts.see_prompt, how.tokens, how.modalities)
            return _Table(path, _with_kind(path, problems), [], prompts)
        if kind == "ratings":
            ratings = read_ratings(path, how.root, how.linked_roots, how.modalities, how.tokens)
            return _Table(path, ratings.problems, [*ratings.rows])
        if kind == "pairs":
            pairs = read_pairs(path, how.root, how.linked_roots, how.modalities, how.tokens)
            contents = Contents(str(path), kind)
            for pair in pairs.rows:
                contents.see_prompt(pair)
            images = [image for pair in pairs.rows for image in (pair.a, pair.b)]
            return _Table(path, pairs.problems, [], contents, images)
        columns = how.modality_column, how.patient_column
        dataset = read_dataset(path, how.root, *columns, how.linked_roots, how.modalities, how.tokens)
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


def _repeated(table: _Table, found: Found) -> list[Problem]:
    """A warning for each image that a table names in several ways, by links or as copies: it counts more than once."""
    linked = _same_files(table, found)
    told = {row.path for row, _ in linked}
    reasons = [(row, f"is the same file as {other.file!r} on line {other.row}, by a link") for row, other in linked]
    for row, other in same_pictures(table.rows, found.pictures, told):
        reasons.append((row, f"shows the same picture as {other.file!r} on line {other.row}"))
    return [
        Problem(str(table.path), f"{row.file!r} {reason}", row.row, _key(row), "warning") for row, reason in reasons
    ]


def _same_files(table: _Table, images: Found) -> list[tuple[ImageRow | RatingRow, ImageRow | RatingRow]]:
    """(row, an earlier row) for every file that links name in several ways."""
    first: dict[tuple[int, int], ImageRow | RatingRow] = {}
    told: set[Path] = set()
    found = []
    for row in table.rows:
        state = images.states.get(image_key(row))
        if state is None:  # reading it says why
            continue
        known = first.setdefault(state.inode, row)
        if known.path != row.path and row.path not in told:
            told.add(row.path)
            found.append((row, known))
    return found
