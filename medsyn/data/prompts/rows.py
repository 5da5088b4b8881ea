"""The third table a campaign reads: the prompt list. It is streamed, because it may have millions of rows.

The file is a CSV, JSON lines, Parquet or a text file with a prompt a line (blank lines and lines that start with `#`
are skipped). `prompt` is required; `id`, `modality`, `n`, `seed`, `num_inference_steps`, `guidance_scale` and
`negative_prompt` are optional, and an empty value means the configuration's; all others are passthrough
columns, copied to the manifest.

* The modality comes from its column or else from the prompt's prefix (`Chest X-ray: ...`).
* A prompt without an `id` is named after its modality, its text and the number of its earlier occurrences, so the name
  does not depend on the order of the list. A prompt that is listed twice is two prompts.
* Everything wrong is found in one pass and reported with its row and column; of many errors the first are shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from medsyn.config import MOST_IMAGES, MOST_SEED
from medsyn.data.modalities import clean_text, read_prefix
from medsyn.data.prompts.formats import COLUMNS, Records, read_records
from medsyn.data.prompts.hash_counter import Seen
from medsyn.data.tables.row_errors import Faults, show
from medsyn.data.tables.text_checks import belongs_to, check_modality, check_text
from medsyn.data.tables.token_count import TokenCount
from medsyn.disk import fingerprint
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.modality_names import MODALITIES
from medsyn.schedulers import MOST_GUIDANCE, TRAINING_STEPS
from medsyn.stage import slug

ERRORS_SHOWN = 50
MOST_CHARACTERS = 10_000  # of one value; CLIP reads a few hundred
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NO_NUMBER = {"nan", "none", "null", "<na>"}  # as text these may be a program's mistake: no number is guessed

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt and its settings; None means the configuration's value."""

    row: int
    prompt_id: str  # safe as a file name, unique in the list
    prompt: str
    modality: str
    n: int | None = None  # images to make of it
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSource:
    """A prompt list that can be read repeatedly: a file, or a few texts."""

    name: str  # what problems name as their source
    records: Callable[[Faults], Records]
    is_file: bool = True
    modalities: Collection[str] = MODALITIES  # that a prompt may belong to, besides the five

    @classmethod
    def file(
        cls, path: str | Path, keep: Collection[str] = (), modalities: Collection[str] = MODALITIES
    ) -> PromptSource:
        """The list in a file; `keep` as for `read_records`."""
        return cls(str(path), lambda faults: read_records(Path(path), faults, keep), modalities=modalities)

    @classmethod
    def texts(
        cls, name: str, texts: Iterable[tuple[str, str]], modalities: Collection[str] = MODALITIES
    ) -> PromptSource:
        """A list of (modality, text)."""
        records = [(row, {"modality": modality, "prompt": text}) for row, (modality, text) in enumerate(texts, 1)]
        return cls(name, lambda faults: iter(records), is_file=False, modalities=modalities)

    def rows(self, faults: Faults) -> Iterator[PromptRow]:
        """The good rows, one at a time; what is wrong with the others is added to `faults`.

        Raises:
            InputError, InputProblems: the list as a whole cannot be used; the latter once it has been read to its end.
        """
        reader, empty = _Reader(faults, self.modalities), True
        for row, record in self.records(faults):
            good = reader.row(row, record)
            if good is not None:
                empty = False
                yield good
        if faults.file_refused:
            raise InputProblems(faults.all_errors())
        if empty and not faults.errors:
            raise InputError(self.name, "there are no rows")


def check_prompts(
    path: Path,
    see: Callable[[PromptRow], None] | None = None,
    tokens: TokenCount | None = None,
    modalities: Collection[str] = MODALITIES,
) -> list[Problem]:
    """All problems of a prompt list: errors and warnings. `see` is called with every good row; `tokens`: `Faults`."""
    source, faults = PromptSource.file(path, modalities=modalities), new_faults(path, tokens)
    try:
        for row in source.rows(faults):
            if see is not None:
                see(row)
    except (InputError, InputProblems) as error:
        return [*dict.fromkeys([*faults.all_errors(), *error.problems]), *faults.warnings()]
    return [*faults.all_errors(), *faults.warnings()]


def read_texts(
    name: str,
    texts: Iterable[Mapping[str, Any]],
    modality: str | None = None,
    modalities: Collection[str] = MODALITIES,
    tokens: TokenCount | None = None,
) -> tuple[list[PromptRow], list[Problem]]:
    """Prompts that are not in a file, checked like the rows of a list: the good ones, and every problem.

    Args:
        name: what problems name as their source.
        texts: for each prompt, the columns of a row.
        modality: of the prompts that do not name theirs.
        modalities: that a prompt may belong to, besides the five.
        tokens: see `Faults`.
    """
    faults = Faults(name, tokens=tokens)
    reader = _Reader(faults, modalities)
    read = [reader.row(row, {"modality": modality, **record}) for row, record in enumerate(texts, 1)]
    return [row for row in read if row is not None], [*faults.errors, *faults.warnings(with_rows=False)]


def wrong_negative(text: str) -> list[str]:
    """What is wrong with a negative prompt that is not in a list; it is checked like one in a list."""
    _, problems = read_texts("", [{"prompt": "CT: any", "negative_prompt": text}])
    return [problem.reason for problem in problems]


def new_faults(source: str | Path, tokens: TokenCount | None = None) -> Faults:
    """The faults of a prompt list: of a million errors only the first are kept. `tokens`: see `Faults`."""
    return Faults(str(source), ERRORS_SHOWN, tokens)


class _Reader:
    """From records to rows; remembers the ids and prompts it has seen."""

    def __init__(self, faults: Faults, modalities: Collection[str]) -> None:
        self._faults = faults
        self._modalities = modalities
        self._ids = Seen()
        self._prompts = Seen()

    def row(self, row: int, record: Mapping[str, Any]) -> PromptRow | None:
        """The row that a record means, or None if something is wrong with it."""
        faults = self._faults
        before = faults.count
        values = self._plain_values(row, record)
        modality, prompt = self._text(row, values)
        count = self._whole(row, values, "n", 1, MOST_IMAGES)
        seed = self._whole(row, values, "seed", 0, MOST_SEED)
        steps = self._whole(row, values, "num_inference_steps", 1, TRAINING_STEPS)
        guidance = self._number(row, values, "guidance_scale", 1, MOST_GUIDANCE)
        negative = clean_text(self._line(row, values, "negative_prompt") or "") or None
        given = self._line(row, values, "id")
        if modality is None or prompt is None or faults.count > before:
            return None
        repeats = self._prompts.count(f"{modality}\0{prompt}")
        prompt_id = given or f"{slug(modality)}-{fingerprint([modality, prompt, repeats])[:16]}"
        if not self._check_id(row, prompt_id):
            return None
        if repeats > 1 and not given and {count, seed, steps, guidance, negative} == {None}:
            faults.warn(row, "prompt", "the same prompt as in an earlier row: more images are generated from it")
        extra = {column: _shown(value) for column, value in values.items() if column not in COLUMNS}
        return PromptRow(row, prompt_id, prompt, modality, count, seed, steps, guidance, negative, extra)

    def _plain_values(self, row: int, record: Mapping[str, Any]) -> dict[str, Scalar]:
        """The record's values; an invalid one is reported and left out."""
        values: dict[str, Scalar] = {}
        for column, value in record.items():
            reason = _refused(value)
            if reason is None:
                values[column] = _plain(value)
            else:
                self._faults.error(row, column, reason)
        if "prompt" not in record:
            self._faults.error(row, "prompt", "is missing; every row needs one")
        return values

    def _text(self, row: int, values: Mapping[str, Scalar]) -> tuple[str | None, str | None]:
        """The modality and the prompt."""
        name, written = self._line(row, values, "modality"), self._line(row, values, "prompt")
        if name is None or written is None or "prompt" not in values:
            return None, None
        modality = self._modality(row, name, written)
        prompt = check_text(self._faults, row, "prompt", written, modality)
        if prompt and not modality and not name:
            way_out = f"start it with one of the five ({', '.join(MODALITIES)}) and a colon"
            self._faults.error(row, "prompt", f"{show(prompt)} names no modality; {way_out}")
        return modality, prompt

    def _modality(self, row: int, name: str, written: str) -> str | None:
        """What the modality's column says, or else the prompt's prefix."""
        if name:
            return check_modality(self._faults, row, "modality", name, written, self._modalities)
        said, _ = read_prefix(written)
        return None if said is None else belongs_to(self._faults, row, "prompt", said, written, self._modalities)

    def _check_id(self, row: int, prompt_id: str) -> bool:
        """Whether the row may have this id."""
        first = self._ids.first(prompt_id.casefold(), row)
        if not _ID.fullmatch(prompt_id):
            reason = "is not a valid id: up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        elif first != row:
            reason = f"is already the id of line {first} (case is ignored)"
        else:
            return True
        self._faults.error(row, "id", f"{show(prompt_id)} {reason}")
        return False

    def _line(self, row: int, values: Mapping[str, Scalar], column: str) -> str | None:
        """A value as one line of text, '' if it is empty; None if it has line breaks."""
        value = values.get(column)
        text = "" if value is None else str(value).strip()
        if "\n" in text or "\r" in text:
            self._faults.error(row, column, f"{show(text)} contains a line break; write it on one line")
            return None
        return text

    def _number(self, row: int, values: Mapping[str, Scalar], column: str, low: float, high: float) -> float | None:
        value = values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if low <= number <= high:
            return number
        self._faults.error(row, column, f"{show(str(value))} is not a number from {low:g} to {high:g}{_way_out(value)}")
        return None

    def _whole(self, row: int, values: Mapping[str, Scalar], column: str, low: int, high: int) -> int | None:
        value = values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        number = _whole_number(value)
        if number is not None and low <= number <= high:
            return number
        self._faults.error(
            row, column, f"{show(str(value))} is not a whole number from {low} to {high}{_way_out(value)}"
        )
        return None


def _refused(value: Any) -> str | None:
    """Why a value cannot be one of a prompt list, or None if it can."""
    if not isinstance(value, str):
        known = value is None or isinstance(value, (bool, int, float, date, time, Decimal))
        return None if known else f"is a {type(value).__name__}; a value must be a text or a number"
    if len(value) > MOST_CHARACTERS:
        return f"{show(value)} is longer than {MOST_CHARACTERS} characters"
    if "\0" in value:
        return "contains a NUL byte"
    return None if value.isascii() or _encodable(value) else f"{ascii(value)[:100]} is not valid Unicode text"


def _way_out(value: Scalar) -> str:
    """What to do about a text that programs write for a missing number."""
    return "; leave it empty if there is none" if str(value).strip().casefold() in _NO_NUMBER else ""


def _plain(value: Any) -> Scalar:
    """A value that JSON can hold; None for NaN, which tables have for a missing number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, (date, time, Decimal)) else value


def _shown(value: Scalar) -> Scalar:
    """A passthrough value as tables, reports and terminals may show it: texts on one line, as prompts are."""
    return value if not isinstance(value, str) or value.isprintable() else clean_text(value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole_number(value: Scalar) -> int | None:
    """3 of 3, '3', 3.0, '3.0' and '3e0' (spreadsheets and pandas write whole numbers so); else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    try:
        return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else _from_float(value)
    except (ValueError, TypeError, OverflowError):
        return None


def _from_float(value: Any) -> int | None:
    number = float(value)
    return int(number) if number.is_integer() else None
