"""The names of modalities: the five, their spellings, and those of a part of the body, such as `Brain MRI`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from medsyn.text import did_you_mean

MODALITIES: tuple[str, ...] = ("OCT", "CT", "X-Ray", "MRI", "Fundus")
COLOUR_MODALITIES = {"Fundus"}  # everything else is generated as grey

# Spellings are compared without case, spaces, hyphens and underscores: `X-ray`, `x_ray`, `XRAY`.
# The short ones without a vowel, `opt` and `op` are DICOM's modality codes.
_SPELLINGS: dict[str, str] = {
    "OCT": "oct octscan octbscan sdoct ssoct opt opticalcoherencetomography",
    "CT": "ct ctscan cta ctangiography hrct ldct ncct cect computedtomography",
    "X-Ray": "xray xrays xr cxr cr dx xrayimage radiograph radiography plainradiograph",
    "MRI": "mri mr mriscan mrscan magneticresonance magneticresonanceimaging",
    "Fundus": "fundus op cfp fundusphoto fundusphotograph fundusphotography fundusimage",
}
# Parts of the body by the name that stands before the modality.
_ANATOMIES: dict[str, str] = {
    "Head": "head skull",
    "Brain": "brain cerebral",
    "Neck": "neck",
    "Eye": "orbit eye",
    "Retinal": "retina retinal macula macular",
    "Chest": "chest thorax thoracic lung pulmonary",
    "Cardiac": "heart cardiac",
    "Breast": "breast",
    "Abdominal": "abdomen abdominal",
    "Liver": "liver",
    "Kidney": "kidney renal",
    "Pelvic": "pelvis pelvic",
    "Prostate": "prostate",
    "Spine": "spine spinal cervical lumbar",
    "Shoulder": "shoulder",
    "Elbow": "elbow",
    "Wrist": "wrist",
    "Hand": "hand",
    "Hip": "hip",
    "Knee": "knee",
    "Ankle": "ankle",
    "Foot": "foot",
}
_WORDS = {word: anatomy for anatomy, words in _ANATOMIES.items() for word in words.split()}
_OTHER_WORDS = ("left", "right", "axial", "coronal", "sagittal", "frontal", "lateral", "contrast", "color", "colour")
# What may stand before or after a modality: `Chest X-ray`, `BrainMRI`, `CT abdomen`, `left fundus`.
_WORD = "|".join((*_WORDS, *_OTHER_WORDS))
_NAME = re.compile(
    f"((?:{_WORD})*)"
    + "(?:" + "|".join("(" + spellings.replace(" ", "|") + ")" for spellings in _SPELLINGS.values()) + ")"
    + f"((?:{_WORD})*)"
)  # fmt: skip
_LONGEST = 200  # letters around a modality that are looked at word by word
_FIRST_WORD = re.compile(f"({_WORD})((?:{_WORD})*)")


class Named(NamedTuple):
    """What a name says."""

    modality: str  # one of the five
    anatomies: tuple[str, ...] = ()  # parts of the body, as `Brain`, in the order of the name
    others: tuple[str, ...] = ()  # further words, as `left`


def _squeeze(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


@lru_cache(maxsize=1024)
def read_name(name: str) -> Named | None:
    """What a name in any usual spelling says, or None if it names no modality.

    Case, spaces, hyphens and underscores are ignored, and a body part, side or plane before or after the modality is
    understood: `CXR`, `Chest X-ray`, `BrainMRI`, `CT abdomen`, `fundus photography`.
    """
    match = _NAME.fullmatch(_squeeze(name))
    if match is None:
        return None
    before, *spelt, after = match.groups()
    place = next(place for place, spelling in enumerate(spelt) if spelling)
    words = [*_split(before), *_split(after)] if len(before + after) <= _LONGEST else []
    anatomies = list(dict.fromkeys(_WORDS[word] for word in words if word in _WORDS))
    if spelt[place] == "cxr" and not anatomies:
        anatomies = ["Chest"]
    if "Spine" in anatomies and "thoracic" in words:  # the thoracic spine
        anatomies.remove("Chest")
    return Named(MODALITIES[place], tuple(anatomies), tuple(word for word in words if word in _OTHER_WORDS))


def _split(words: str) -> Iterator[str]:
    """The words of a text that consists of them."""
    while match := _FIRST_WORD.fullmatch(words):
        yield match[1]
        words = match[2]


def canonical_modality(name: str) -> str | None:
    """The one of the five modalities that a name in any usual spelling says, or None."""
    named = read_name(name)
    return named.modality if named else None


def base_modality(name: str) -> str:
    """The one of the five that a canonical name is of: `Brain MRI` -> `MRI`, `MRI` -> `MRI`."""
    return name.rpartition(" ")[2]


def anatomy_of(name: str) -> str | None:
    """The part of the body of a canonical name: `Brain MRI` -> `Brain`, `MRI` -> None."""
    return name.rpartition(" ")[0] or None


def in_order(names: Iterable[str]) -> list[str]:
    """Canonical names in the order of the five; those of parts of the body follow the plain one, by the alphabet."""
    return sorted(names, key=lambda name: (MODALITIES.index(base_modality(name)), name != base_modality(name), name))


def canonical_name(name: str) -> str:
    """The canonical name of a modality (`X-Ray`) or of a part of the body and a modality (`Chest X-Ray`).

    Raises:
        ValueError: it is neither; the message says what can be.
    """
    named = read_name(name)
    if named is None:
        raise ValueError(_no_name(name))
    if named.others or len(named.anatomies) > 1:
        raise ValueError("must be a modality, or one part of the body and a modality, as in Brain MRI")
    return " ".join((*named.anatomies, named.modality))


def _no_name(name: str) -> str:
    """Why a name is none: an unknown part of the body before a modality, or no modality at all."""
    part, _, last = name.strip().rpartition(" ")
    modality = canonical_modality(last)
    if part and modality:
        hint = did_you_mean(_squeeze(part), _WORDS, cutoff=0.7, show=lambda word: f"{_WORDS[word]} {modality}")
        return f"there is no such part of the body: known are {', '.join(_ANATOMIES)}{hint}"
    spellings = {spelling: modality for modality, known in _SPELLINGS.items() for spelling in known.split()}
    hint = did_you_mean(_squeeze(name), spellings, cutoff=0.7, show=spellings.__getitem__)
    return f"must be {', '.join(MODALITIES)}, or a part of the body and one of these, as in Brain MRI{hint}"


def not_a_modality(name: str) -> str:
    """The message for a `name` that is not a modality: lists the five, and suggests the closest one if there is one."""
    spellings = {spelling: modality for modality, known in _SPELLINGS.items() for spelling in known.split()}
    hint = did_you_mean(_squeeze(name), spellings, cutoff=0.7, show=spellings.__getitem__)
    return f"is not one of the five modalities {', '.join(MODALITIES)}{hint}"


def most_specific(modality: str, anatomies: Collection[str], listed: Collection[str]) -> str | None:
    """The name to which something of one of the five modalities and perhaps of a part of the body belongs.

    Args:
        modality: one of the five.
        anatomies: parts of the body, as `Brain`; the first that is listed counts.
        listed: canonical names. Of a modality that is not among them in any way, everything belongs to the plain name.

    Returns:
        A listed name or one of the five; None if only names of other parts of the body are listed.
    """
    rivals = by_anatomy(modality, listed)
    named = (name for anatomy in anatomies if (name := f"{anatomy} {modality}") in rivals)
    return next(named, modality if modality in listed or not rivals else None)


def by_anatomy(modality: str, listed: Collection[str]) -> list[str]:
    """The listed names of parts of the body that are of one of the five modalities: `MRI` -> `Brain MRI`, …"""
    end = f" {modality}"
    return [name for name in listed if name.endswith(end)]
