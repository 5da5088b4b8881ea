"""The real images beside the candidates in every batch: what keeps the generator from running after its scorers.

They are those that experts rated good, and training images that the modality's Selector accepts. Latents are those of
the fine-tuning, from its cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from medsyn.config import AugmentSection, Config
from medsyn.data.images.latent_cache import TensorCache
from medsyn.data.images.read import Image
from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.models.score_images import selector_scores
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.seeds import seed
from medsyn.stage import Control
from medsyn.training.encode_rows import encode_rows
from medsyn.training.finetune.dataset import LatentDataset, prepare_dataset
from medsyn.training.scorers.rated import GOOD

MOST = 2048  # training images that the Selector looks at, by lot

logger = logging.getLogger(__name__)


def rated_good(ratings: Sequence[RatingRow]) -> list[ImageRow]:
    """Images that all their raters called good, with the prompt they were rated under."""
    poor = {row.path for row in ratings if row.rating < GOOD}
    first = {row.path: row for row in reversed(ratings) if row.path not in poor}
    good = sorted(first.values(), key=lambda row: row.row)
    return [ImageRow(row.row, row.file, row.path, row.prompt, row.modality, None, row.volume) for row in good]


def by_lot(rows: Sequence[ImageRow], campaign_seed: int) -> list[ImageRow]:
    """At most `MOST` of the rows, in the table's order."""
    drawn = sorted(rows, key=lambda row: (seed("real image", campaign_seed, row.file, row.text), row.row))
    return sorted(drawn[:MOST], key=lambda row: row.row)


def accepted(
    config: Config,
    rows: Sequence[ImageRow],
    hashes: dict[Path, str],
    load_selector: Callable[[], Selector],
    selector: str,
    threshold: float,
    cache: TensorCache,
    control: Control,
) -> list[ImageRow]:
    """The rows whose image the Selector accepts; errors as for `encode_rows`.

    Args:
        config: the campaign's.
        rows: of the data set, of one modality.
        hashes: SHA-256 of every row's file.
        load_selector: called only if something must be scored.
        selector: fingerprint of its weights.
        threshold: the least score that is accepted.
        cache: where scores are kept.
        control: receives progress.
    """
    if not rows:
        return []

    def score(_: Image, pixels: Tensor) -> dict[str, Tensor]:
        scorer = load_selector()
        device = scorer.calibration.slope.device
        seen = (pixels * 255).round().to(device) / 255  # 8-bit, as candidates are scored
        return {"score": selector_scores(scorer, seen, rows[0].modality).score.float().cpu()}

    allowed = config.data.allow_synthetic
    its = (config, config.data.table, rows, hashes, score, cache, control, allowed, ("selector", selector))
    kept, _ = encode_rows(*its)
    return [row for key, row in kept if float(cache.read(key, "score")) >= threshold]


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
    plain = config.finetune.model_copy(update={"rare_captions": None})
    if config.finetune.augment.versions is None:
        plain = plain.model_copy(update={"augment": AugmentSection()})
    changed = config.model_copy(update={"data": lenient, "finetune": plain})
    return prepare_dataset(changed, rows, hashes, load_system, cache, control)
