"""The real images beside the candidates in every batch: what keeps the generator from running after its scorers.

They are those that experts rated good, and the better half of the training images by the modality's scorers. Latents
are those of the fine-tuning, from its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache
from medsyn.data.images.read import Image
from medsyn.data.tables import split
from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.seeds import seed
from medsyn.stage import Control
from medsyn.training.alignment.candidates import Scorers, scores_of
from medsyn.training.encode_rows import encode_rows
from medsyn.training.finetune.dataset import LatentDataset, prepare_dataset
from medsyn.training.scorers.rated import GOOD

MOST = 2048  # training images that are looked at, by lot
_TOGETHER = 64


def rated_good(ratings: Sequence[RatingRow]) -> list[ImageRow]:
    """Images that all their raters called good, with the prompt they were rated under."""
    poor = {row.path for row in ratings if row.rating < GOOD}
    first = {row.path: row for row in reversed(ratings) if row.path not in poor}
    good = sorted(first.values(), key=lambda row: row.row)
    return [ImageRow(row.row, row.file, row.path, row.prompt, row.modality, None, row.volume) for row in good]


def by_lot(rows: Sequence[ImageRow], campaign_seed: int) -> list[ImageRow]:
    """At most `MOST` of the rows, in the table's order."""
    return split.by_lot(rows, MOST, lambda row: seed("real image", campaign_seed, row.file, row.text))


@dataclass(frozen=True)
class Asking:
    """What says which images are good."""

    config: Config
    hashes: dict[Path, str]
    load_system: Callable[[], SyntheticSystem]  # called only if something must be scored, as is the next
    load_scorers: Callable[[], Scorers]
    scorers: str  # fingerprint of their weights
    threshold: float  # of the Selector
    cache: TensorCache  # where pictures and scores are kept
    control: Control


def accepted(asking: Asking, rows: Sequence[ImageRow]) -> list[ImageRow]:
    """The rows of one modality whose image the Selector accepts, and that are in the better half by both scorers.

    The Policy is asked under the row's own caption: one may be wrong, and a model that is to follow its prompts must
    not learn that. A threshold that most good images pass lets many poor ones pass, too, hence the better half (by
    the product of the scores, as candidates are rewarded). Errors as for `encode_rows`.
    """
    kept, quality, fit = _scored(asking, rows)
    both = quality * fit
    passes = (quality >= asking.threshold) & (both >= (np.median(both) if len(both) else 0))
    return [row for row, one in zip(kept, passes, strict=True) if one]


def of_quality(asking: Asking, rows: Sequence[ImageRow]) -> list[ImageRow]:
    """The rows of one modality whose image the Selector accepts, whatever their captions say."""
    kept, quality, _ = _scored(asking, rows)
    return [row for row, one in zip(kept, quality >= asking.threshold, strict=True) if one]


def _scored(asking: Asking, rows: Sequence[ImageRow]) -> tuple[list[ImageRow], np.ndarray, np.ndarray]:
    """The rows that can be used, and the scores of the Selector and of the Policy [N]."""
    if not rows:
        return [], np.zeros(0), np.zeros(0)

    def keep(_: Image, pixels: Tensor) -> dict[str, Tensor]:
        return {"picture": (pixels[0].permute(1, 2, 0) * 255).round().to(torch.uint8)}

    config, cache = asking.config, asking.cache
    its = (config, config.data.table, rows, asking.hashes, keep, cache, asking.control, config.data.allow_synthetic)
    kept, _ = encode_rows(*its, ("picture",))
    keys = [disk.fingerprint(["real image", asking.scorers, key, row.text]) for key, row in kept]
    for start in range(0, len(kept), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        if any(key not in cache for key in keys[part]):
            pictures = torch.stack([cache.read(key, "picture") for key, _ in kept[part]])
            texts = [row.text for _, row in kept[part]]
            found = scores_of(asking.load_scorers(), asking.load_system(), rows[0].modality, texts, pictures)
            cache.add({key: {"scores": found[place]} for place, key in enumerate(keys[part])})
            asking.control.leave_if_asked()
        asking.control.heartbeat(min(part.stop, len(kept)), len(kept), "real image")
    table = np.array([cache.read(key, "scores").tolist() for key in keys]).reshape(-1, 4)
    return [row for _, row in kept], table[:, 0], table[:, 2]


def prepare(
    config: Config,
    rows: Sequence[ImageRow],
    hashes: dict[Path, str],
    load_system: Callable[[], SyntheticSystem],
    cache: TensorCache,
    control: Control,
) -> LatentDataset:
    """The rows' latents and text features, as fine-tuning has them; generated ones among them are left out."""
    lenient = config.data.model_copy(update={"strict": False})  # fine-tuning and RLHF have told what is wrong
    once = config.finetune.model_copy(update={"rare_captions": None})
    changed = config.model_copy(update={"data": lenient, "finetune": once})
    return prepare_dataset(changed, rows, hashes, load_system, cache, control)
