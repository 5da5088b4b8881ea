"""Expert ratings as tensors: what each row's image looks like, what its prompt says, and how it is trained on.

Candidates come from the generator's decoder and are scored as 8-bit pictures. So a rated image passes through the VAE
once and is rounded to 8 bits before a scorer sees it (`raters.match_decoder`): otherwise the scorers would learn to
tell a camera from a decoder. A generated image has already been through a decoder and stays unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache, caption_key
from medsyn.data.images.read import Image
from medsyn.data.tables.read import RatingRow, ratings_of
from medsyn.data.tables.split import hold_out
from medsyn.errors import InputError
from medsyn.models.weights import weights_fingerprint
from medsyn.stage import Control
from medsyn.training.encode_rows import encode_rows

if TYPE_CHECKING:
    from medsyn.models.stable_diffusion import SyntheticSystem

GOOD = 2  # ratings from here up are good: the Selector's positive class


@dataclass(frozen=True)
class RatedSet:
    """N rated rows; rows of several raters share an image, rows of several images share a prompt."""

    pixels: Tensor  # uint8 [images, 3, R, R]
    pooled: Tensor  # float32 [prompts, D]
    line: np.ndarray  # int64 [N], of the table: identifies a row in every stage
    image: np.ndarray  # int64 [N], into pixels
    prompt: np.ndarray  # int64 [N], into pooled
    rating: np.ndarray  # int64 [N], 1 to 3
    weight: np.ndarray  # float32 [N], mean 1
    held_out: np.ndarray  # bool [N]
    modality: np.ndarray  # str [N]
    prompt_modality: np.ndarray  # str [prompts]
    counts: dict[str, int]  # for the summary

    @property
    def good(self) -> np.ndarray:
        """bool [N]: rated acceptable or excellent."""
        return self.rating >= GOOD

    @property
    def reward(self) -> np.ndarray:
        """float32 [N]: the rating as 0, 0.5 or 1."""
        return ((self.rating - 1) / 2).astype(np.float32)


def rated_rows(config: Config) -> list[RatingRow]:
    """The rows of the ratings table that belong to the campaign's modalities.

    Raises:
        InputProblems: the table has bad rows (`data.strict`) or none.
        InputError: none is of the campaign's modalities.
    """
    source = str(config.data.ratings_file)
    rows = [
        row for row in ratings_of(config.data).require(config.data.strict) if row.modality in config.data.modalities
    ]
    if not rows:
        reason = f"has no ratings for {', '.join(config.data.modalities)}"
        raise InputError(source, reason, key="data.modalities")
    return rows


def load_rated(
    config: Config,
    rows: Sequence[RatingRow],
    hashes: dict[Path, str],
    prompts_of: Sequence[RatingRow],
    load_system: Callable[[], SyntheticSystem],
    cache: TensorCache,
    control: Control,
) -> RatedSet:
    """Load the rated images and prompts, computing what the cache lacks.

    Arguments and errors are those of `encode_rows`, and besides:

    Args:
        prompts_of: all rows of the campaign: their prompts may serve as wrong prompts, and they decide the split.
        load_system: called only if something must be computed.
    """
    weights = weights_fingerprint(config.model_paths.stable_diffusion)
    matched = config.raters.match_decoder

    def read(image: Image, pixels: Tensor) -> dict[str, Tensor]:
        if matched and not image.synthetic:
            system = load_system()
            pixels = system.decode(system.encode(pixels)[0])  # one at a time: other images in a batch change bits
        return {"pixels": pixels[0]}

    def embed(prompt: str) -> dict[str, Tensor]:
        return {"pooled": load_system().embed(prompt)[1]}

    source = str(config.data.ratings_file)
    kept, _ = encode_rows(
        config, source, rows, hashes, read, cache, control, allow_synthetic=True, variant=("rated", matched)
    )
    modality_of = {row.prompt: row.modality for row in prompts_of}
    prompts = {caption_key(prompt, weights, config.data.chunks): prompt for prompt in modality_of}
    cache.fill(prompts, str, embed, control, "prompt")

    table = pd.DataFrame([row for _, row in kept])
    image, images = pd.factorize(np.array([key for key, _ in kept]))
    level = table.expert_level.to_numpy(np.float32) if config.raters.expert_weights else np.ones(len(kept), np.float32)
    is_held_out = hold_out(prompts_of, config.data.held_out_fraction, config.campaign.seed)
    return RatedSet(
        # kept as 8-bit pictures, as candidates are scored; also a quarter of the memory
        pixels=torch.stack([(cache.read(key, "pixels").float() * 255).round().to(torch.uint8) for key in images]),
        pooled=torch.stack([cache.read(key, "pooled").float() for key in prompts]),
        line=table.row.to_numpy(),
        image=image,
        prompt=table.prompt.map({prompt: place for place, prompt in enumerate(modality_of)}).to_numpy(),
        rating=table.rating.to_numpy(),
        weight=level / level.mean(),
        held_out=np.array([is_held_out(row) for _, row in kept]),
        modality=table.modality.to_numpy(str),
        prompt_modality=np.array(list(modality_of.values())),
        counts={
            "ratings": len(kept),
            "images": len(images),
            "prompts": len(prompts),
            "skipped": len(rows) - len(kept),
        },
    )
