"""From a row's fields to a modality and a text that names it: what is wrong is reported, and None returned."""

from __future__ import annotations

from medsyn.data.modalities import (
    CLIP_TOKENS,
    canonical_modality,
    clean_text,
    has_placeholder,
    is_over_long,
    not_a_modality,
    says_nothing,
    split_prefix,
)
from medsyn.data.tables.row_errors import Faults, show


def check_modality(faults: Faults, row: int, key: str, written: str) -> str | None:
    """The modality that is meant."""
    modality = canonical_modality(written)
    if modality is None:
        faults.error(row, key, f"{show(written)} {not_a_modality(written)}")
    return modality


def check_text(faults: Faults, row: int, key: str, written: str, modality: str | None) -> str | None:
    """The text on one line and, if the modality is known, with its prefix."""
    text = clean_text(written)
    said, body = split_prefix(text)
    if says_nothing(body):
        faults.error(row, key, f"{show(text)} says nothing; a text is required")
        return None
    if modality is None:
        return text
    if said is None:
        text = f"{modality}: {text}"
        faults.warn(row, key, "does not start with its modality, as in 'CT: ...'; it was added")
    elif said != modality:
        faults.warn(row, key, f"the text says {said}, the modality is {modality}")
    if has_placeholder(text):
        reason = "has placeholders of de-identification (such as ___, [**...**], XXXX or <NAME>), which a model learns"
        faults.warn(row, key, f"{reason} as if they were words: remove them")
    _check_length(faults, row, key, text)
    return text


def _check_length(faults: Faults, row: int, key: str, text: str) -> None:
    """Warn if the text encoder will not read the end of the text."""
    if faults.tokens is None:
        if is_over_long(text):
            faults.warn(row, key, f"longer than about {CLIP_TOKENS} CLIP tokens (an estimate); the rest is ignored")
    elif number := faults.tokens.too_many(text):
        reason = f"too long: up to {{most}} tokens, and the model's text encoder reads {faults.tokens.limit}"
        faults.warn(row, key, f"{reason} (with those of begin and end); the rest is ignored", number)
