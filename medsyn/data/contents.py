"""What a table holds, in numbers: no patient is named, and no caption quoted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsyn.config import CampaignSection, DataSection
from medsyn.data.images.pixels import Image
from medsyn.data.images.read import format_of
from medsyn.data.prompts.rows import PromptRow
from medsyn.data.tables.pairs import PairImage, PairRow
from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.data.tables.split import hold_out

HELD_OUT_FRACTION: float = DataSection.model_fields["held_out_fraction"].default
SEED: int = CampaignSection.model_fields["seed"].default

ImageKey = tuple[Path, str, int | None]  # file, modality, volume
Row = ImageRow | RatingRow


@dataclass(frozen=True)
class Picture:
    """What is known of an image once it has been read."""

    format: str
    size: tuple[int, int]  # width and height, of square pixels
    spacing: float | None  # millimetres
    digest: bytes  # of the pixels

    @classmethod
    def of(cls, path: Path, image: Image) -> Picture:
        """Of the file that the image was read from."""
        height, width, _ = image.pixels.shape
        digest = hashlib.blake2b(image.pixels.data, digest_size=16, key=f"{height} {width}".encode()).digest()
        return cls(format_of(path), (width, height), image.spacing, digest)


@dataclass
class Part:
    """What a table holds of one modality."""

    rows: int = 0
    images: int = 0
    held_out: int = 0  # of the images
    patients: int | None = None  # None: the table does not say
    patients_held_out: int | None = None
    ratings: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    spacings: Counter[float] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "rows": self.rows,
            "images": self.images,
            "patients": self.patients,
            "held_out": {"images": self.held_out, "patients": self.patients_held_out},
            "ratings": {str(rating): number for rating, number in sorted(self.ratings.items())},
            "formats": dict(self.formats),
            "sizes": {f"{width}x{height}": number for (width, height), number in self.sizes.most_common()},
            "spacing_mm": [min(self.spacings), max(self.spacings)] if self.spacings else None,
        }


@dataclass
class Contents:
    """What the good rows of a table hold."""

    source: str
    kind: str  # dataset, ratings, pairs or prompts
    parts: dict[str, Part] = field(default_factory=dict)  # by modality
    words: Counter[int] = field(default_factory=Counter)  # of captions and prompts: how many have so many words
    repeated: int = 0  # pictures that are there under another name, too

    def see_prompt(self, row: PromptRow | PairRow) -> None:
        """Count a row of a prompt list, or of a table of pairs."""
        self.parts.setdefault(row.modality, Part()).rows += 1
        self.words[len(row.prompt.split())] += 1

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "source": self.source,
            "kind": self.kind,
            "modalities": {modality: part.as_dict() for modality, part in self.parts.items()},
            "words": {str(words): number for words, number in sorted(self.words.items())},
            "repeated_pictures": self.repeated,
        }


def image_key(row: Row | PairImage) -> ImageKey:
    """What is read for a row: the modality decides how an image is shown."""
    return row.path, row.modality, row.volume


def of_rows(source: str, rows: Sequence[Row], pictures: Mapping[ImageKey, Picture]) -> Contents:
    """What the rows of a data set or of ratings hold.

    Args:
        source: the table.
        rows: its good rows.
        pictures: of those images that could be read.
    """
    kind = "ratings" if rows and isinstance(rows[0], RatingRow) else "dataset"
    names_patients = any(row.patient_id for row in rows)
    is_held_out = hold_out(rows, HELD_OUT_FRACTION, SEED)
    contents = Contents(source, kind, repeated=len(same_pictures(rows, pictures)))
    for modality in dict.fromkeys(row.modality for row in rows):
        its = [row for row in rows if row.modality == modality]
        contents.parts[modality] = _part(its, pictures, is_held_out, names_patients)
    texts = {row.text if isinstance(row, ImageRow) else row.prompt for row in rows}
    contents.words = Counter(len(text.split()) for text in texts)
    return contents


def _part(
    rows: Sequence[Row],
    pictures: Mapping[ImageKey, Picture],
    is_held_out: Callable[[Row], bool],
    names_patients: bool,
) -> Part:
    images = {image_key(row): row for row in rows}
    seen = [pictures[key] for key in images if key in pictures]
    held = [row for row in images.values() if is_held_out(row)]
    return Part(
        rows=len(rows),
        images=len(images),
        held_out=len(held),
        patients=_patients(images.values()) if names_patients else None,
        patients_held_out=_patients(held) if names_patients else None,
        ratings=Counter(row.rating for row in rows if isinstance(row, RatingRow)),
        formats=Counter(picture.format for picture in seen),
        sizes=Counter(picture.size for picture in seen),
        spacings=Counter(picture.spacing for picture in seen if picture.spacing is not None),
    )


def _patients(rows: Iterable[Row]) -> int:
    return len({row.patient_id for row in rows if row.patient_id})


def same_pictures(
    rows: Iterable[Row], pictures: Mapping[ImageKey, Picture], told: Collection[Path] = ()
) -> list[tuple[Row, Row]]:
    """(row, an earlier row) for every image that shows what one of another name does, pixel for pixel.

    Args:
        rows: of one table.
        pictures: of the images that could be read.
        told: files that are left out.
    """
    first: dict[bytes, Row] = {}
    seen: set[tuple[Path, int | None]] = set()
    found = []
    for row in rows:
        picture, image = pictures.get(image_key(row)), (row.path, row.volume)
        if picture is None or image in seen or row.path in told:
            continue
        seen.add(image)
        earlier = first.setdefault(picture.digest, row)
        if earlier is not row:
            found.append((row, earlier))
    return found
