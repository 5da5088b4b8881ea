"""What the campaign's scorers say of images that no scorer chose, so that every arm has scores to look at.

They are no evidence: the same scorers choose in other arms, and the generator may have been aligned with them. Scores
in an arm that filters are on record, and are taken from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.evaluation.generated import GeneratedImages, Record, open_image
from medsyn.generation.write.provenance import Sources, quality_threshold
from medsyn.models.score_images import policy_scores, selector_scores, to_pixels
from medsyn.models.scorers import load_policy, load_selector
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.stage import CampaignDirectory

MOST = 200  # images of an arm in one modality: what can be seen in more is no evidence either
_TOGETHER = 16
_DEVICE = torch.device("cpu")  # the stage has no other

Scores = dict[str, float]  # selector, policy and passes (0 or 1)


def score(
    config: Config,
    directory: CampaignDirectory,
    made: Mapping[str, Mapping[str, GeneratedImages]],
    tick: Callable[[], None],
) -> dict[int, Scores]:
    """Scores of the first `MOST` sampled images of each arm without a filter, by the `id` of their pictures.

    Args:
        config: the campaign's.
        directory: where it is.
        made: by modality, then by mode, what was generated.
        tick: called before each batch.

    Returns:
        Nothing of a modality whose scorers are not there.
    """

    @functools.cache
    def system() -> SyntheticSystem:
        source, chunks = config.model_paths.stable_diffusion, config.data.chunks
        return load_synthetic(source, _DEVICE, torch.float32, with_unet=False, text_chunks=chunks)

    found: dict[int, Scores] = {}
    for modality, of_modes in made.items():
        plain = [its for mode, its in of_modes.items() if not config.arm(mode).filters and its.pictures]
        if not plain:
            continue
        try:
            scorers = _Scorers(config, directory, modality, system)
        except InputError:
            continue
        for its in plain:
            kept = slice(0, MOST)
            for start in range(0, len(its.pictures[kept]), _TOGETHER):
                tick()
                some = slice(start, min(start + _TOGETHER, MOST))
                scores = scorers(its.records[some], its.blocks[some])
                found |= dict(zip(map(id, its.pictures[some]), scores, strict=True))
    return found


class _Scorers:
    """The scorers of one modality."""

    def __init__(
        self, config: Config, directory: CampaignDirectory, modality: str, system: Callable[[], SyntheticSystem]
    ) -> None:
        selector, policy = (file.parent for file in Sources(config, modality, directory).scorers())
        self._threshold = quality_threshold(config, selector, modality)
        self._least, self._modality, self._system = config.generation.min_policy_score or 0.0, modality, system()
        device = self._system.device
        self._selector, self._policy = load_selector(selector, device), load_policy(policy, device)

    @torch.no_grad()
    def __call__(self, records: Sequence[Record], blocks: Sequence[Path]) -> list[Scores]:
        """The scores of images that are of one size."""
        images = [_read(block, line) for block, line in zip(blocks, records, strict=True)]
        pixels = to_pixels(torch.from_numpy(np.stack(images)), self._system.device)
        pooled = self._system.pool_all([line["prompt"] for line in records])
        selector = selector_scores(self._selector, pixels, self._modality).score.tolist()
        policy = policy_scores(self._policy, pixels, pooled, self._modality).score.tolist()
        return [
            {"selector": one, "policy": other, "passes": float(one >= self._threshold and other >= self._least)}
            for one, other in zip(selector, policy, strict=True)
        ]


def _read(block: Path, line: Record) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 1 or 3] as the generator wrote it."""
    with Image.open(open_image(block, line)) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
