"""The table of pairs: which of two images an expert prefers. It is read by the rules of `medsyn.data.tables.read`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from medsyn.data.modalities import clean_text, read_prefix
from medsyn.data.tables.csv_rows import check_text_file, csv_records, require_csv
from medsyn.data.tables.data_folder import DataFolder
from medsyn.data.tables.read import InputTable, check_file, check_volume, require_table
from medsyn.data.tables.row_errors import Faults, show
from medsyn.data.tables.text_checks import check_modality, check_text
from medsyn.data.tables.token_count import TokenCount
from medsyn.modality_names import MODALITIES

if TYPE_CHECKING:
    from medsyn.config import DataSection

Preferred = Literal["a", "b", "same", "neither"]
PAIR_COLUMNS = ("image_a", "image_b", "preferred", "prompt")
_VOLUMES = ("volume_a", "volume_b")


@dataclass(frozen=True, slots=True)
class PairImage:
    """One of the two images of a pair."""

    row: int
    file: str
    path: Path
    modality: str
    column: str
    volume: int | None = None


@dataclass(frozen=True, slots=True)
class PairRow:
    """One rater's judgement of two images of one prompt."""

    row: int
    a: PairImage
    b: PairImage
    preferred: Preferred  # "same": as good as each other; "neither": both are bad
    modality: str
    prompt: str
    rater: str | None = None


def read_pairs(
    path: str | Path,
    root: str | Path | None = None,
    linked_roots: Iterable[str | Path] = (),
    modalities: Collection[str] = MODALITIES,
    tokens: TokenCount | None = None,
) -> InputTable[PairRow]:
    """Read pairs: columns `image_a`, `image_b`, `preferred` (a, b, same, neither) and `prompt`.

    `rater`, `volume_a` and `volume_b` may be there, and `modality` where prompts do not begin with theirs. Arguments
    are those of `read_dataset`.

    Raises:
        InputError, InputProblems: the file as a whole cannot be used.
    """
    path = Path(path)
    require_csv(path)
    check_text_file(path)
    folder, faults = DataFolder(root or path.parent, linked_roots), Faults(str(path), tokens=tokens)
    rows: list[PairRow] = []
    for line, values in csv_records(faults, path, PAIR_COLUMNS, ("modality", "rater", *_VOLUMES)):
        first, second, preferred, prompt, name, rater, *numbers = values
        files = [check_file(faults, line, *one, folder) for one in (("image_a", first), ("image_b", second))]
        volumes = [check_volume(faults, line, *one) for one in zip(numbers, _VOLUMES, strict=True)]
        answer = _check_preferred(faults, line, preferred)
        modality = _check_modality(faults, line, name, prompt, modalities)
        checked = check_text(faults, line, "prompt", prompt, modality) if modality else None
        if files[0] is not None and files[0] == files[1] and volumes[0] == volumes[1]:
            faults.error(line, "image_b", "is the same image as image_a")
        elif 0 in volumes:
            continue
        elif files[0] and files[1] and answer and modality and checked:
            a, b = (
                PairImage(line, folder.name(file), file, modality, column, volume)
                for file, column, volume in zip(files, PAIR_COLUMNS, volumes, strict=False)
                if file is not None
            )
            rows.append(PairRow(line, a, b, answer, modality, checked, rater or None))
    return require_table(path, rows, faults, folder)


def pairs_of(data: DataSection, tokens: TokenCount | None = None) -> InputTable[PairRow]:
    """Read the pairs that a resolved configuration names; raises as `read_pairs` does."""
    return read_pairs(str(data.pairs_file), data.root, data.linked_roots, data.modalities, tokens)


def _check_preferred(faults: Faults, row: int, written: str) -> Preferred | None:
    for answer in get_args(Preferred):
        if written.casefold() == answer:
            found: Preferred = answer
            return found
    faults.error(row, "preferred", f"{show(written)} is not a, b, same or neither (both are bad)")
    return None


def _check_modality(faults: Faults, row: int, written: str, prompt: str, modalities: Collection[str]) -> str | None:
    """The modality that the column names or, without it, the prompt."""
    if written:
        return check_modality(faults, row, "modality", written, prompt, modalities)
    said, _ = read_prefix(clean_text(prompt))
    if said is None:
        reason = (
            f"{show(prompt)} does not begin with its modality, as in 'CT: ...'; begin it so, or add a column modality"
        )
        faults.error(row, "prompt", reason)
        return None
    return check_modality(faults, row, "prompt", said.modality, prompt, modalities)
