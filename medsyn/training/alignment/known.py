"""What the judge is given to know: held-out real images, their captions, and ratings that no scorer has seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache
from medsyn.data.images.read import Image
from medsyn.data.tables import split
from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.models.image_features import NAME
from medsyn.seeds import seed
from medsyn.stage import Control
from medsyn.training.alignment.judge import Known, Seen
from medsyn.training.alignment.judging import seen_in
from medsyn.training.encode_rows import encode_rows
from medsyn.training.scorers.rated import GOOD

Row = TypeVar("Row", ImageRow, RatingRow)
MOST = 512  # real images that a judge compares with, by lot


def by_lot(held_out: Sequence[ImageRow], campaign_seed: int) -> list[ImageRow]:
    """At most `MOST` of the rows, each image once, in the table's order."""
    once = {row.file: row for row in reversed(held_out)}.values()
    return split.by_lot(once, MOST, lambda row: seed("judge's image", campaign_seed, row.file))


def known_to(
    config: Config,
    held_out: Sequence[ImageRow],
    examples: Collection[str],
    judged: Sequence[RatingRow],
    group_of: Mapping[str, str],
    modality: str,
    hashes: Mapping[Path, str],
    embed: Callable[[Sequence[str]], np.ndarray],
    cache: TensorCache,
    control: Control,
) -> Known:
    """Read the images that the judge knows; errors as for `encode_rows`.

    Args:
        config: the campaign's.
        held_out: images of the modality whose patients are not trained on, by lot.
        examples: the files of those that are of good quality: what else is real is nothing to be near to.
        judged: ratings of every modality that no scorer learned from.
        group_of: the group of every file.
        modality: whose images will be judged.
        hashes: SHA-256 of every file.
        embed: text features [N, T] of texts.
        cache: where what is seen of an image is kept.
        control: receives progress.
    """
    poor = {row.path for row in judged if row.rating < GOOD}
    kept = _seen(config, config.data.table, [row for row in held_out if row.path not in poor], hashes, cache, control)
    # an image is as good as its raters say together
    of_image: dict[str, list[RatingRow]] = {}
    for row in judged:
        of_image.setdefault(row.file, []).append(row)
    first = [its[0] for its in of_image.values()]
    rated = _seen(config, str(config.data.ratings_file), first, hashes, cache, control) if first else []
    features = np.stack([cache.read(key, "features").numpy() for key, _ in rated]) if rated else np.zeros((0, 1))
    modalities = np.array([row.modality for _, row in rated])
    for name in np.unique(modalities):  # what is typical of a modality says nothing of quality
        if name != modality:
            there, here = features[modalities == name], features[modalities == modality]
            features[modalities == name] += (here.mean(axis=0) if len(here) else 0) - there.mean(axis=0)
    good = [np.mean([one.rating for one in of_image[row.file]]) >= GOOD for _, row in rated]
    return Known(
        real=Seen(
            np.stack([cache.read(key, "features").numpy() for key, _ in kept]) if kept else np.zeros((0, 1)),
            np.stack([cache.read(key, "small").float().numpy() for key, _ in kept]) / 255
            if kept
            else np.zeros((0, 8, 8)),
        ),
        example=np.array([row.file in examples for _, row in kept], dtype=bool),
        texts=embed([row.text for _, row in kept]) if kept else np.zeros((0, 1)),
        text_groups=[group_of[row.file] for _, row in kept],
        rated=features,
        good=np.array(good, dtype=bool),
        rated_groups=[group_of[row.file] for _, row in rated],
    )


def _seen(
    config: Config,
    table: str,
    rows: Sequence[Row],
    hashes: Mapping[Path, str],
    cache: TensorCache,
    control: Control,
) -> list[tuple[str, Row]]:
    """(key, row) of the rows that can be used: what the judge sees of each is in the cache."""

    def see(_: Image, pixels: Tensor) -> dict[str, Tensor]:
        picture = (pixels[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        features, small = seen_in(picture)
        return {"features": features, "small": small}

    if not rows:
        return []
    lenient = config.data.model_copy(update={"strict": False})
    changed = config.model_copy(update={"data": lenient})
    return encode_rows(changed, table, rows, hashes, see, cache, control, True, ("judge", NAME))[0]
