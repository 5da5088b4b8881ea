"""The three files of a rating: the set inside the page, its key, and a rater's answers.

The set is what raters see: images under opaque names, cases and pairs in sections. The key says what each is, and
stays with whoever made the set. Answers come back from the page. All numbers are whole, so that Python and JavaScript
write the same canonical JSON, of which all hashes are made; docs/rating.md explains every field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medsyn import disk
from medsyn.errors import InputError, InputProblems, Problem

SET_FORMAT: Final = "medsyn-rating-set/1"
KEY_FORMAT: Final = "medsyn-rating-key/1"
ANSWERS_FORMAT: Final = "medsyn-rating-answers/1"
SECTIONS = 4  # of a set; an image and its repeat are two sections apart, whatever the rater's order
LONGEST_NOTE = 2000  # characters
RATERS = r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}"  # what a rater may be called
MOST_ANSWER_BYTES = 2**27  # of a file of answers; 10,000 answers with notes are some 10 MB

_MOST_PROBLEMS = 100  # that are told of one file
_NAME = r"[a-z0-9]{12}"
Name = Annotated[str, Field(pattern=f"^{_NAME}$")]  # opaque, of an image, a case or a pair
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Grade = Annotated[int, Field(ge=1, le=3)]
Count = Annotated[int, Field(ge=0, lt=2**53)]  # what both languages hold exactly
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]  # by the rater's clock
Choice = Literal["left", "right", "same", "both-bad"]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Model = TypeVar("Model", bound=_Record)


# --- the set --------------------------------------------------------------------------------------------------------


class ShownImage(_Record):
    """One image of the page; its pixels are beside, as a PNG file without any text.

    Of three channels, red and blue are stored without green, modulo 256.
    """

    modality: str
    width: Count
    height: Count
    bits: Literal[8, 16]
    channels: Literal[1, 3]
    low: int  # the levels that are shown from black to white at first
    high: int
    offset: int  # added to a level it gives the value in `unit`
    unit: str  # HU, or empty where levels mean nothing by themselves
    sha256: Digest  # of the PNG file


class Case(_Record):
    """One image to rate."""

    id: Name
    image: Name
    section: Count
    caption: str  # the prompt, or a real image's caption; empty if captions are hidden


class Pair(_Record):
    """Two images to compare; which is on the left is the rater's order."""

    id: Name
    images: tuple[Name, Name]
    section: Count
    caption: str


class Example(_Record):
    """An image that shows what a rating means."""

    modality: str
    rating: Grade
    image: Name


class Defect(_Record):
    """One line of a checklist."""

    id: str
    text: str


class Preset(_Record):
    """One window: in the image's unit, or in per cent of its levels."""

    name: str
    low: int
    high: int
    unit: str  # HU, or %


class Checklist(_Record):
    """What the page offers for images of one modality."""

    defects: tuple[Defect, ...]
    presets: tuple[Preset, ...]


class RatingSet(_Record):
    """Everything that the page knows, but for the pixels."""

    format: Literal["medsyn-rating-set/1"]
    version: str  # of medsyn
    title: str
    seed: str  # of the raters' orders
    sections: Count
    idle_seconds: Count  # a longer pause between two actions counts as this long
    break_minutes: Count
    images: dict[Name, ShownImage]
    cases: tuple[Case, ...]
    pairs: tuple[Pair, ...]
    examples: tuple[Example, ...]
    checklists: dict[str, Checklist]  # by one of the five modalities

    @property
    def hash(self) -> str:
        """Of everything in it, and by the images' hashes of every pixel."""
        return canonical_hash(self.model_dump(mode="json"))

    @property
    def id(self) -> str:
        """Its hash in short, for people."""
        return self.hash[:12]


# --- the key --------------------------------------------------------------------------------------------------------


class Origin(_Record):
    """Where an image of the page comes from; nothing of it is in the page."""

    kind: Literal["generated", "real"]
    file: str  # absolute path
    member: str | None = None  # its name, where `file` is an archive
    volume: int | None = None  # of a 4-D NIfTI file, from 1
    sha256: Digest  # of the image file
    modality: str
    prompt: str
    accepted: bool | None = None  # these are null for an image that is not from a campaign
    mode: str | None = None
    prompt_id: str | None = None
    replicate: int | None = None
    attempt: int | None = None
    selector: float | None = None
    policy: float | None = None


class CaseKey(_Record):
    """What a case is."""

    image: Name
    decoy: bool
    repeat_of: Name | None  # the case of the same image that counts; this one measures the rater


class SetKey(_Record):
    """What every opaque name stands for."""

    format: Literal["medsyn-rating-key/1"]
    id: str
    set: Digest
    version: str
    images: dict[Name, Origin]
    cases: dict[Name, CaseKey]
    pairs: dict[Name, tuple[Name, Name]]


# --- the answers ----------------------------------------------------------------------------------------------------


class Window(_Record):
    """The levels that were shown from black to white when the answer was given."""

    low: int
    high: int


class Draft(_Record):
    """What a rater has said of a case or a pair beside the answer itself."""

    item: Name  # a case or a pair
    defects: list[str]
    confidence: Grade | None  # 1 low, 2 medium, 3 high
    note: Annotated[str, Field(max_length=LONGEST_NOTE)]
    milliseconds: Count  # at work on it, without idle time


class Answer(Draft):
    """One answer. A case has a `rating` or `not_sure`, a pair a `choice` or `not_sure`."""

    order: Count  # its place in the rater's order, from 0
    shown: Annotated[list[Name], Field(min_length=1, max_length=2)]  # images, from left to right
    rating: Grade | None
    choice: Choice | None
    not_sure: bool
    answered_at: Moment
    serial: Count  # answers of a session count up in the order in which they were given
    changes: Count  # how often it was taken back or given anew
    window: Window
    zoom: Annotated[int, Field(ge=1, le=100_000)]  # per cent

    @model_validator(mode="after")
    def _says_one_thing(self) -> Answer:
        said = [self.rating is not None, self.choice is not None, self.not_sure]
        if sum(said) != 1:
            raise ValueError("must have exactly one of a rating, a choice and not_sure")
        if len(self.shown) != (2 if self.choice else 1) and not self.not_sure:
            raise ValueError("a rating is of one image, a choice of two")
        return self


class Rater(_Record):
    """Who answered."""

    id: Annotated[str, Field(pattern=f"^{RATERS}$")]
    expert_level: Grade


class Display(_Record):
    """What the rater said and the browser knew of the screen."""

    dark_patch: bool | None  # the faint square in black was seen; null where the check was left out
    bright_patch: bool | None
    light: Literal["dim", "office", "bright"] | None
    width: Count  # of the window, CSS pixels
    height: Count
    ratio: Count  # screen pixels for a CSS pixel, per cent


class SetName(_Record):
    """Which set was answered."""

    id: str
    hash: Digest


class Answers(_Record):
    """A rater's session as the page exports it, finished or not."""

    format: Literal["medsyn-rating-answers/1"]
    version: str  # of the page
    set: SetName
    rater: Rater
    started_at: Moment
    exported_at: Moment
    display: Display
    answers: list[Answer]
    drafts: list[Draft]  # of what has no answer yet
    integrity: Digest  # `canonical_hash` of all the rest


# --- hashes, and reading --------------------------------------------------------------------------------------------


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, as the page writes it, too; all numbers must be whole."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_hash(value: Any) -> str:
    """Hex SHA-256 of `canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def seal(answers: Mapping[str, Any]) -> dict[str, Any]:
    """The answers with their integrity hash; one that they have is replaced.

    It shows that a file was damaged or edited, not who wrote it: there is no secret in it.
    """
    body = {key: value for key, value in answers.items() if key != "integrity"}
    return {**body, "integrity": canonical_hash(body)}


def read_answers(path: Path) -> Answers:
    """A file of answers; that its names are those of a set is for whoever has the set's key to check.

    Raises:
        InputError: it cannot be read, is no file of answers, or was changed after it was saved.
        InputProblems: fields are missing or out of range; all are named.
    """
    tree = _tree(path, ANSWERS_FORMAT, "a file of answers, as the rating page saves it")
    try:
        sealed = seal(tree)["integrity"] == tree.get("integrity")
    except ValueError:  # half of a surrogate pair, or a number that is none: the page writes neither
        sealed = False
    if not sealed:
        reason = "was changed after the page saved it (its integrity hash differs): ask the rater for the original"
        raise InputError(path, reason)
    return _validated(Answers, tree, path)


def read_key(path: Path) -> SetKey:
    """The key of a set; raises as `read_answers` does."""
    return _validated(SetKey, _tree(path, KEY_FORMAT, "the key of a rating set (SET.key.json)"), path)


def _tree(path: Path, expected: str, what: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_ANSWER_BYTES:
            raise InputError(path, f"has more than {MOST_ANSWER_BYTES:,} bytes: it is not {what}")
        tree = disk.read_json(path)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(path, f"is not JSON ({error}): it is not {what}, or it is damaged") from None
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != expected:
        said = f"its format is {str(found)[:60]!r}" if found else "it names no format"
        raise InputError(path, f"is not {what}: {said}, not {expected!r}")
    return tree


def _validated(model: type[Model], tree: dict[str, Any], path: Path) -> Model:
    try:
        return model.model_validate_json(json.dumps(tree))  # strict, and JSON's lists are tuples
    except ValidationError as error:
        problems = [
            Problem(str(path), f"{one['msg'].removeprefix('Value error, ')}", key=".".join(map(str, one["loc"])))
            for one in error.errors(include_url=False)[:_MOST_PROBLEMS]
        ]
        raise InputProblems(problems) from None
