"""With which settings images that medsyn made were sampled, as their files say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_READ_AS: Mapping[str, Callable[[str], Any]] = {
    "scheduler": str,
    "num_inference_steps": int,
    "guidance_scale": float,
}
Sampling = dict[str, list[Any]]  # every value that some image was sampled with, by setting


def sampling_of(files: Iterable[Path]) -> Sampling | None:
    """The settings of those of the files that medsyn has made; None if there are none. Nothing is decoded."""
    from medsyn.data.images.own_record import own_texts  # needs Pillow, which a login node does not have

    found: dict[str, set[Any]] = {}
    for file in dict.fromkeys(files):
        texts = own_texts(file)
        if texts.get("Synthetic") != "YES":
            continue
        for setting, read in _READ_AS.items():
            with suppress(KeyError, ValueError):
                found.setdefault(setting, set()).add(read(texts[setting.replace("_", " ").capitalize()]))
    return {setting: sorted(values) for setting, values in found.items()} or None


def differences(seen: Mapping[str, Any] | None, here: Mapping[str, Any]) -> list[str]:
    """What is sampled otherwise here than any image that was seen: `guidance_scale 3.0 (seen: 7.5)`."""
    return [
        f"{setting} {here[setting]} (seen: {', '.join(map(str, values))})"
        for setting, values in (seen or {}).items()
        if setting in here and isinstance(values, list) and values and here[setting] not in values
    ]
