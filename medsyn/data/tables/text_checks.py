"""From a row's fields to a modality and a text that names it: what is wrong is reported, and None returned."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from medsyn.data.modalities import CLIP_TOKENS, clean_text, has_placeholder, is_over_long, read_prefix, says_nothing
from medsyn.data.tables.row_errors import Faults, show
from medsyn.modality_names import Named, anatomy_of, base_modality, by_anatomy, most_specific, not_a_modality, read_name


def check_modality(
    faults: Faults, row: int, key: str, written: str, text: str, modalities: Collection[str]
) -> str | None:
    """The modality that a row belongs to.

    Args:
        faults: what is wrong is added to it.
        row: its number.
        key: the modality's column.
        written: what the column says.
        text: whose prefix may say the part of the body.
        modalities: those that there are to belong to, canonical names.
    """
    named = read_name(written)
    if named is None:
        faults.error(row, key, f"{show(written)} {not_a_modality(written)}")
        return None
    return belongs_to(faults, row, key, named, text, modalities)


def belongs_to(faults: Faults, row: int, key: str, named: Named, text: str, modalities: Collection[str]) -> str:
    """The most specific of `modalities` that a row's modality and its text's prefix name; else one of the five.

    Where that is none of `modalities` but others of it are, the row is left out, which is a warning.
    """
    rivals = by_anatomy(named.modality, modalities)
    if not rivals:
        return named.modality
    anatomies = named.anatomies
    if not anatomies and (said := read_prefix(text)[0]) and said.modality == named.modality:
        anatomies = said.anatomies
    name = most_specific(named.modality, anatomies, modalities)
    if name is None:
        faults.warn(row, key, f"{_left_out(named.modality, anatomies, rivals)}; left out")
    return name or named.modality


def _left_out(modality: str, anatomies: Sequence[str], rivals: Sequence[str]) -> str:
    """Why a row belongs to none of the campaign's modalities, although some are of the row's one of the five."""
    if anatomies:
        return f"is of {anatomies[0]} {modality}, which is not in data.modalities"
    way_out = f"write '{rivals[0]}' as its modality, or begin its text with '{rivals[0]}: '"
    return f"is of {modality} and names no part of the body, while data.modalities has {', '.join(rivals)}: {way_out}"


def check_text(faults: Faults, row: int, key: str, written: str, modality: str | None) -> str | None:
    """The text on one line and, if the modality is known, with its prefix."""
    text = clean_text(written)
    said, body = read_prefix(text)
    if says_nothing(body):
        faults.error(row, key, f"{show(text)} says nothing; a text is required")
        return None
    if modality is None:
        return text
    if said is None:
        text = f"{modality}: {text}"
        faults.warn(row, key, "does not start with its modality, as in 'CT: ...'; it was added")
    elif reason := _contradiction(said, modality):
        faults.warn(row, key, reason)
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
        faults.warn(
            row,
            key,
            f"{reason} (with those of begin and end); the rest is ignored, unless data.text_chunks is higher",
            number,
        )


def _contradiction(said: Named, modality: str) -> str | None:
    """What a text's prefix says against the row's modality, if it does."""
    base, anatomy = base_modality(modality), anatomy_of(modality)
    if said.modality != base:
        return f"the text says {said.modality}, the modality is {base}"
    if anatomy and said.anatomies and anatomy not in said.anatomies:
        return f"the text says {said.anatomies[0]} {base}, the modality is {modality}"
    return None
