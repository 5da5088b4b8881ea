"""What is known of an image besides its pixels: its modality, and the prompt that it is to show."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medsyn.data.images.own_record import modality_of_text, own_record
from medsyn.data.tables.csv_rows import check_text_file, csv_records, require_csv
from medsyn.data.tables.row_errors import Faults
from medsyn.data.tables.text_checks import check_modality, check_text
from medsyn.errors import InputError, Problem
from medsyn.scoring.find import is_table


@dataclass(frozen=True)
class Caption:
    """What is known of an image."""

    modality: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Captions:
    """Where captions come from; the first that knows wins: a table or one text, the file's own record, `modality`."""

    modality: str | None = None  # of images that nothing else says it of
    text: str | None = None  # of every image
    rows: Mapping[tuple[str, str], Caption] = field(default_factory=dict)  # by (folder, name)

    def of(self, file: str) -> Caption:
        """What is known of an image file."""
        folder, name = os.path.split(file)
        row = self.rows.get((_real(folder), name), Caption())
        own_modality, own_prompt = own_record(Path(file))
        prompt = row.prompt or self.text or own_prompt
        said = row.modality or own_modality or (modality_of_text(prompt) if prompt else None) or self.modality
        return Caption(said, _begun(prompt, said))


def _begun(prompt: str | None, modality: str | None) -> str | None:
    """A prompt that starts with its modality, as those that a Policy has learned from."""
    if prompt is None or modality is None or modality_of_text(prompt):
        return prompt
    return f"{modality}: {prompt}"


def read_captions(
    prompts: str | Path | None, modality: str | None, modalities: Collection[str], problems: list[Problem]
) -> Captions:
    """Captions from what was asked for.

    Args:
        prompts: a text for all images, or a table of them: a data set (`path`, `Text`, `modality`) or ratings
            (`image_path`, `prompt`, `modality`). Files are relative to the table's own folder.
        modality: of images that nothing else says it of.
        modalities: those that the scorers know.
        problems: bad rows are added; the others count.

    Raises:
        InputError: the table cannot be read, or the text says nothing.
    """
    if prompts is None:
        return Captions(modality)
    if is_table(prompts) or Path(prompts).is_file():
        return Captions(modality, rows=_read_table(Path(prompts), modalities, problems))
    faults = Faults("--prompts")
    text = check_text(faults, 1, "prompt", str(prompts), modality or modality_of_text(str(prompts)))
    if text is None:
        raise InputError("--prompts", faults.errors[0].reason)
    return Captions(modality, text)


def _read_table(path: Path, modalities: Collection[str], problems: list[Problem]) -> dict[tuple[str, str], Caption]:
    require_csv(path)
    check_text_file(path)
    with path.open(encoding="utf-8-sig") as stream:
        header = stream.readline().casefold()
    of_file, of_text = ("image_path", "prompt") if "image_path" in header else ("path", "Text")
    faults, found = Faults(str(path)), {}
    for line, (written, text, name) in csv_records(faults, path, (of_file, of_text, "modality")):
        modality = check_modality(faults, line, "modality", name, text, modalities)
        prompt = check_text(faults, line, of_text, text, modality)
        folder, file = os.path.split(path.parent / written)
        found[_real(folder), file] = Caption(modality, prompt)
    problems += faults.errors
    return found


@functools.lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """A folder by its one real name, however it was written."""
    return os.path.realpath(folder)
