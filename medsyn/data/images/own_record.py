"""What a PNG file of medsyn's own says of itself: its modality and its prompt."""

from __future__ import annotations

from pathlib import Path

from PIL import Image as PillowImage

from medsyn.data.modalities import read_prefix
from medsyn.modality_names import canonical_name, most_specific

_RASTER = (".png", ".jpg", ".jpeg")


def own_record(path: Path) -> tuple[str | None, str | None]:
    """(modality, prompt) as the texts of a file say them; None for what they do not say.

    Nothing is decoded. Of a file that cannot be read nothing is said: whoever decodes it says what is wrong.
    """
    texts = own_texts(path)
    prompt = texts.get("Prompt") or None
    return _modality(texts.get("Modality"), prompt), prompt


def own_texts(path: Path) -> dict[str, str]:
    """The texts of a PNG or JPEG file, by their keys; none where there are none, or it cannot be read."""
    if path.suffix.lower() not in _RASTER:
        return {}
    try:
        with PillowImage.open(path, formats=("PNG", "JPEG")) as opened:
            return {key: value for key, value in opened.info.items() if isinstance(key, str) and isinstance(value, str)}
    except Exception:  # decoders of damaged files raise anything
        return {}


def _modality(written: str | None, prompt: str | None) -> str | None:
    try:
        return canonical_name(written) if written else modality_of_text(prompt or "")
    except ValueError:
        return modality_of_text(prompt or "")


def modality_of_text(text: str) -> str | None:
    """The modality that a text starts with, of the part of the body if it names one: `Brain MRI: normal`."""
    named, _ = read_prefix(text)
    if named is None:
        return None
    listed = [named.modality, *(f"{anatomy} {named.modality}" for anatomy in named.anatomies)]
    return most_specific(named.modality, named.anatomies, listed)
