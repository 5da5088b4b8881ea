"""Selectors as a campaign trains them: by the stages themselves, on a part of the images."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsyn import config as configuration
from medsyn.config import Config
from medsyn.data.degradations.kinds import DEGRADATIONS
from medsyn.models.cards import threshold_of
from medsyn.models.scorers import load_selector
from medsyn.models.selector import Selector
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.scorers import stages
from scoring.images import RatedImages, Rating

TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"
CPU = torch.device("cpu")


def settings(images: RatedImages, folder: Path, seed: int, changes: Sequence[str]) -> Config:
    """configs/tiny.yaml on the tables that `RatedImages.write` left in `folder`."""
    paths = {"table": folder / "metadata.csv", "ratings_file": folder / "ratings.csv", "root": images.root}
    modalities = "[" + ", ".join(sorted({one.modality for one in images.ratings})) + "]"
    own = ["align.enabled=false", "generation.modes=[baseline, filtered]"]  # an alignment's judge keeps ratings
    own += [f"data.{key}={path}" for key, path in paths.items()]
    return configuration.load(TINY, [*own, f"data.modalities={modalities}", f"campaign.seed={seed}", *changes], {})


@contextmanager
def trained(
    images: RatedImages,
    without: Collection[str],
    seed: int,
    changes: Sequence[str] = (),
    families: Collection[str] = (),
) -> Iterator[tuple[Selector, Config]]:
    """A Selector of stage 1.

    Args:
        images: the data set.
        without: groups of which it sees nothing.
        seed: the campaign's.
        changes: `key=value` on top of configs/tiny.yaml.
        families: kinds of damage that it is never shown, neither rated nor made.
    """
    kept = [one for one in images.ratings if one.group not in without and one.family not in families]
    with tempfile.TemporaryDirectory() as folder:
        images.write(Path(folder), kept, without)
        config = settings(images, Path(folder), seed, changes)
        directory = CampaignDirectory(Path(folder) / "campaign")
        with never_shown(families):
            stages.run_stage1(config, Task("rlhf-stage1", 0, "all"), directory, Control())
        yield load_selector(directory.selector(), CPU), config


@contextmanager
def never_shown(families: Collection[str]) -> Iterator[None]:
    """Stages that make no damage of some families."""
    kinds = [name for name, kind in DEGRADATIONS.items() if kind.family not in families]
    whole = stages.degraded_comparisons
    stages.degraded_comparisons = partial(whole, kinds=kinds) if families else whole  # type: ignore[assignment]
    try:
        yield
    finally:
        stages.degraded_comparisons = whole


def scores(selector: Selector, pixels: Tensor, modality: Sequence[str]) -> np.ndarray:
    """Scores [N] of uint8 pixels [N, 3, R, R], one by one as generation asks on a CPU."""
    pairs = zip(pixels, modality, strict=True)
    return np.array([float(selector.score(one[None].float() / 255, its).score[0]) for one, its in pairs])


def threshold(selector: Selector, config: Config, modality: str) -> float:
    """The score that generation asks of a modality."""
    configured: Any = config.generation.quality_threshold
    if configured != "auto":
        return float(configured)
    found = threshold_of(selector.card, modality)
    return found.threshold if found else 0.0


def held_out(images: RatedImages, folds: dict[str, int], fold: int) -> list[Rating]:
    """The judged images of a fold."""
    return [one for one in images.judged() if folds[one.group] == fold]
