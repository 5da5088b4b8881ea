"""The rated images that a Selector is measured on: phantoms, whose quality is known, or a directory of real ones."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import read_image
from medsyn.data.phantoms.dataset import write_dataset
from medsyn.modality_names import canonical_modality

GOOD = 2
UNKNOWN = "unknown"  # what is wrong with a poor image, where nobody says
# what the ratings of real images call their damage, and the family of `medsyn.data.degradations` that it is of
FAMILY_OF = {"blur": "sharpness", "noise": "noise", "motion": "motion", "clip": "exposure", "uneven": "shading"}
FAMILY_OF["int16 cast to uint8 with wrap-around"] = "grey_levels"


@dataclass(frozen=True)
class Rating:
    """One line of the ratings table, and where its image comes from."""

    image_path: str
    rating: int
    modality: str
    expert_level: int
    prompt: str
    group: str  # the patient or the image that it was made from
    family: str = UNKNOWN  # of its damage; "" for none

    @property
    def is_clean(self) -> bool:
        """An expert calls it excellent."""
        return self.rating == 3


@dataclass(frozen=True)
class RatedImages:
    """A data set with ratings."""

    name: str
    root: Path
    ratings: list[Rating]
    group_of: dict[str, str]  # of the images of the data set's own table

    def judged(self) -> list[Rating]:
        """One rating of each image, the most expert one."""
        best: dict[str, Rating] = {}
        for rating in sorted(self.ratings, key=lambda one: -one.expert_level):
            best.setdefault(rating.image_path, rating)
        return list(best.values())

    def folds(self, count: int, seed: int) -> dict[str, int]:
        """The fold of every group: about as many groups of each modality in each."""
        groups = {rating.group: rating.modality for rating in self.ratings}
        order = sorted(groups, key=lambda group: (groups[group], group))
        drawn = np.random.default_rng(seed).permutation(len(order))
        ranked = sorted(range(len(order)), key=lambda place: (groups[order[place]], drawn[place]))
        return {order[place]: number % count for number, place in enumerate(ranked)}

    def write(self, folder: Path, kept: Sequence[Rating], without: Collection[str]) -> None:
        """Write metadata.csv and ratings.csv of `kept` ratings, and of no image of the groups `without`."""
        with (self.root / "metadata.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        rows = [row for row in rows if self.group_of.get(row["path"], row["path"]) not in without]
        _write(folder / "metadata.csv", rows)
        _write(folder / "ratings.csv", [{k: v for k, v in asdict(one).items() if k != "family"} for one in kept])

    def pixels(self, ratings: Sequence[Rating], side: int) -> Tensor:
        """uint8 [N, 3, R, R], as a campaign reads them."""
        pictures = [fit_square(read_image(self.root / one.image_path, one.modality).pixels, side) for one in ratings]
        return torch.from_numpy(np.round(np.stack(pictures).transpose(0, 3, 1, 2) * 255).astype(np.uint8))


def phantoms(folder: Path, per_kind: int) -> RatedImages:
    """Those of configs/tiny.yaml; each is of a patient of its own."""
    write_dataset(folder, per_kind, 6, 128, 0)
    with (folder / "ratings.csv").open(newline="") as lines:
        rows = [{**row, "group": row["image_path"]} for row in csv.DictReader(lines)]
    return RatedImages("phantoms", folder, [_rating(row, UNKNOWN) for row in rows], {})


def real(folder: Path) -> RatedImages:
    """Those of a directory with metadata.csv, ratings.csv, ratings_provenance.csv (image_path, base, detail) and
    provenance.csv (path, patient)."""
    with (folder / "provenance.csv").open(newline="") as lines:
        group_of = {row["path"]: row["patient"] or row["path"] for row in csv.DictReader(lines)}
    with (folder / "ratings_provenance.csv").open(newline="") as lines:
        origin = {row["image_path"]: row for row in csv.DictReader(lines)}
    with (folder / "ratings.csv").open(newline="") as lines:
        ratings = []
        for row in csv.DictReader(lines):
            base, detail = origin[row["image_path"]]["base"], origin[row["image_path"]]["detail"]
            family = FAMILY_OF.get(detail.partition("/")[0], UNKNOWN)
            ratings.append(_rating({**row, "group": group_of.get(base, base)}, family))
    return RatedImages("real images", folder, ratings, group_of)


def _rating(row: dict[str, str], family: str) -> Rating:
    modality = canonical_modality(row["modality"])
    assert modality is not None, row
    rating, level = int(row["rating"]), int(row["expert_level"])
    family = "" if rating == 3 else family
    return Rating(row["image_path"], rating, modality, level, row["prompt"], row["group"], family)


def _write(path: Path, rows: Sequence[dict[str, object]] | Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
