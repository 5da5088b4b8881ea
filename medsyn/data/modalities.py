"""The five modalities, their spellings, and the texts (captions and prompts) that name them."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from medsyn.text import did_you_mean

MODALITIES: tuple[str, ...] = ("OCT", "CT", "X-Ray", "MRI", "Fundus")
CLIP_TOKENS = 75  # CLIP reads 77, two of which mark begin and end

# Spellings are compared without case, spaces, hyphens and underscores: `X-ray`, `x_ray`, `XRAY`.
# The short ones without a vowel, `opt` and `op` are DICOM's modality codes.
_SPELLINGS: dict[str, str] = {
    "OCT": "oct octscan octbscan sdoct ssoct opt opticalcoherencetomography",
    "CT": "ct ctscan cta ctangiography hrct ldct ncct cect computedtomography",
    "X-Ray": "xray xrays xr cxr cr dx xrayimage radiograph radiography plainradiograph",
    "MRI": "mri mr mriscan mrscan magneticresonance magneticresonanceimaging",
    "Fundus": "fundus op cfp fundusphoto fundusphotograph fundusphotography fundusimage",
}
# What may stand before or after a modality: `Chest X-ray`, `BrainMRI`, `CT abdomen`, `left fundus`.
_QUALIFIERS = (
    "head|brain|cerebral|skull|neck|orbit|eye|retina|retinal|macula|macular|chest|thorax|thoracic|lung|pulmonary|heart|"
    "cardiac|breast|abdomen|abdominal|liver|kidney|renal|pelvis|pelvic|prostate|spine|spinal|cervical|lumbar|shoulder|"
    "elbow|wrist|hand|hip|knee|ankle|foot|left|right|axial|coronal|sagittal|frontal|lateral|contrast|color|colour"
)
_SPELLING = re.compile(
    f"(?:{_QUALIFIERS})*"
    + "(?:" + "|".join("(" + spellings.replace(" ", "|") + ")" for spellings in _SPELLINGS.values()) + ")"
    + f"(?:{_QUALIFIERS})*"
)  # fmt: skip
_PREFIX = re.compile(r"\s*([^:：]{1,60})[:：]\s*")
_NOTHING = {"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null"}
_PLACEHOLDER = re.compile(
    r"(?<!\w)_{2,}(?!\w)|\[\*\*.*?\*\*\]|(?<![^\W_])[Xx]{3,}(?![^\W_])|\u2588+"
    r"|[<\[{](?:[A-Z]+[ _-])*"
    r"(?:NAME|DATE|PATIENT|PERSON|DOCTOR|HOSPITAL|LOCATION|ADDRESS|PHONE|ID|AGE|TIME|REDACTED)\d*[>\]}]"
)
_PIECE = re.compile(r"\d|[^\W\d_]+|[^\w\s]+|_+")


def _squeeze(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


@lru_cache(maxsize=1024)
def canonical_modality(name: str) -> str | None:
    """The canonical name of a modality spelled in any usual way, or None.

    Case, spaces, hyphens and underscores are ignored, and a body part, side or plane before or after the modality is
    understood: `CXR`, `Chest X-ray`, `BrainMRI`, `CT abdomen`, `fundus photography`.
    """
    match = _SPELLING.fullmatch(_squeeze(name))
    return MODALITIES[match.lastindex - 1] if match and match.lastindex else None


def not_a_modality(name: str) -> str:
    """The message for a `name` that is not a modality: lists the five, and suggests the closest one if there is one."""
    spellings = {spelling: modality for modality, known in _SPELLINGS.items() for spelling in known.split()}
    hint = did_you_mean(_squeeze(name), spellings, cutoff=0.7, show=spellings.__getitem__)
    return f"is not one of the five modalities {', '.join(MODALITIES)}{hint}"


def split_prefix(text: str) -> tuple[str | None, str]:
    """The modality that a text starts with, and the rest of the text.

    `Chest X-ray: clear lungs` -> (`X-Ray`, `clear lungs`). Only a modality and a colon make a prefix:
    `Findings: none` and `CT of the chest` -> (None, the whole text).
    """
    match = _PREFIX.match(text)
    modality = canonical_modality(match[1]) if match else None
    return (modality, text[match.end() :]) if match and modality else (None, text)


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
