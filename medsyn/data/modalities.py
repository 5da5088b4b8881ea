"""The texts (captions and prompts) that name a modality: their prefix, and what is wrong with them."""

from __future__ import annotations

import re
import unicodedata

from medsyn.modality_names import Named, read_name

CLIP_TOKENS = 75  # CLIP reads 77, two of which mark begin and end

_PREFIX = re.compile(r"\s*([^:：]{1,60})[:：]\s*")
_NOTHING = {"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null"}
_PLACEHOLDER = re.compile(
    r"(?<!\w)_{2,}(?!\w)|\[\*\*.*?\*\*\]|(?<![^\W_])[Xx]{3,}(?![^\W_])|\u2588+"
    r"|[<\[{](?:[A-Z]+[ _-])*"
    r"(?:NAME|DATE|PATIENT|PERSON|DOCTOR|HOSPITAL|LOCATION|ADDRESS|PHONE|ID|AGE|TIME|REDACTED)\d*[>\]}]"
)
_PIECE = re.compile(r"\d|[^\W\d_]+|[^\w\s]+|_+")


def read_prefix(text: str) -> tuple[Named | None, str]:
    """What the name that a text starts with says, and the rest of the text.

    Only a modality and a colon make a prefix: `Findings: none` and `CT of the chest` -> (None, the whole text).
    """
    match = _PREFIX.match(text)
    named = read_name(match[1]) if match else None
    return (named, text[match.end() :]) if match and named else (None, text)


def split_prefix(text: str) -> tuple[str | None, str]:
    """The one of the five modalities that a text starts with, and the rest of the text.

    `Chest X-ray: clear lungs` -> (`X-Ray`, `clear lungs`).
    """
    named, rest = read_prefix(text)
    return (named.modality if named else None), rest


def clean_text(text: str) -> str:
    """The text on one line, in Unicode's composed form, without invisible control characters."""
    text = " ".join(text.split())
    if text.isascii() and text.isprintable():
        return text
    visible = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(visible.split())


def says_nothing(text: str) -> bool:
    """Whether a text is empty, a spreadsheet's word for empty (`nan`, `N/A`, …), or has no letter and no digit."""
    return text.strip().casefold() in _NOTHING or not any(map(str.isalnum, text))


def has_placeholder(text: str) -> bool:
    """Whether de-identification has left marks in the place of names: `___`, `[**...**]`, `XXXX`, `<NAME>`."""
    return _PLACEHOLDER.search(text) is not None


def is_over_long(text: str) -> bool:
    """Whether the CLIP text encoder is likely to cut off the end of the text.

    An estimate that needs no vocabulary: the tokenizer's own pieces (words, single digits, runs of marks), and for each
    word the tokens that words of its length and script have on average. On texts in English it is right within a tenth.
    """
    if len(text.encode()) <= CLIP_TOKENS:  # a token is a byte or more
        return False
    return sum(map(_estimated_tokens, _PIECE.findall(text))) > CLIP_TOKENS


def _estimated_tokens(piece: str) -> float:
    """CLIP's tokens of a word, a digit or a run of marks; its vocabulary is of English, other scripts are bytes."""
    if not piece.isalpha():
        return 1.0
    return max(1.0, len(piece) / 3 - 1 if piece.isascii() else sum(map(_of_a_letter, piece)))


def _of_a_letter(letter: str) -> float:
    """Tokens of one letter of a word that is not ASCII."""
    if letter.isascii():
        return 0.4
    is_short = letter < "\u0900" or "\u3040" <= letter < "\u3400"  # two bytes, and kana, which are in the vocabulary
    return 1.25 if is_short else 2.7
