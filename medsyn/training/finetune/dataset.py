"""A modality's training data: its real images as latents and their captions as text features, each encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache, caption_key
from medsyn.data.images.read import Image
from medsyn.data.tables.read import ImageRow, dataset_of
from medsyn.data.tables.split import hold_out
from medsyn.errors import InputError
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.models.weights import weights_fingerprint
from medsyn.stage import Control
from medsyn.training.encode_rows import encode_rows
from medsyn.training.schedule import Draws


@dataclass(frozen=True)
class LatentDataset:
    """Training samples as keys into a cache of latents and text features; sample i is an image and its caption."""

    cache: TensorCache
    images: list[str]
    captions: list[str]
    names: list[str]  # of the samples, as their table names them, for messages
    empty_caption: str
    counts: dict[str, int]  # for the summary

    def __len__(self) -> int:
        return len(self.images)

    def keys(self) -> dict[str, Any]:
        """Everything but the cache, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cache"}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(c, h, w)."""
        return tuple(self.cache.read(self.images[0], "mean").shape)

    def batch(self, chosen: Draws) -> tuple[Tensor, Tensor]:
        """Latents [B, c, h, w], drawn from the VAE's posterior, and text features [B, 77, D]; float32, on the CPU."""
        images = [self.images[i] for i in chosen.samples]
        captions = [
            self.empty_caption if dropped else self.captions[i]
            for i, dropped in zip(chosen.samples, chosen.unconditional, strict=True)
        ]
        mean, std = (torch.stack([self.cache.read(key, name) for key in images]).float() for name in ("mean", "std"))
        hidden = torch.stack([self.cache.read(key, "hidden") for key in captions]).float()
        return mean + std * torch.from_numpy(chosen.posterior), hidden


def training_rows(config: Config, modality: str) -> tuple[list[ImageRow], int]:
    """The training rows of one modality, and how many rows are held out for evaluation.

    Raises:
        InputProblems: the table has bad rows (`data.strict`) or none.
        InputError: the table has no image of the modality.
    """
    data = config.data
    everything = dataset_of(data).require(data.strict)
    is_held_out = hold_out(everything, data.held_out_fraction, config.campaign.seed)
    rows = [row for row in everything if row.modality == modality]
    kept = [row for row in rows if not is_held_out(row)]
    if not rows:
        raise InputError(data.table, f"has no images of {modality}", key="data.modalities")
    return kept, len(rows) - len(kept)


def prepare_dataset(
    config: Config,
    rows: Sequence[ImageRow],
    hashes: dict[Path, str],
    load_system: Callable[[], SyntheticSystem],
    cache: TensorCache,
    control: Control,
) -> LatentDataset:
    """Encode the images and captions that the cache lacks.

    Arguments and errors are those of `encode_rows`; `load_system` gives what encodes, and is called only if something
    has to be.
    """
    weights = weights_fingerprint(config.model_paths.stable_diffusion)

    def encode(_: Image, pixels: Tensor) -> dict[str, Tensor]:
        mean, std = load_system().encode(pixels)  # one at a time: other images in a batch change bits
        return {"mean": mean[0], "std": std[0]}

    def embed(caption: str) -> dict[str, Tensor]:
        return {"hidden": load_system().embed(caption)[0]}

    good, encoded = encode_rows(
        config, config.data.table, rows, hashes, encode, cache, control, config.data.allow_synthetic
    )
    captions = {caption_key(text, weights): text for text in ["", *(row.text for _, row in good)]}
    embedded, _ = cache.fill(captions, str, embed, control, "caption")
    return LatentDataset(
        cache=cache,
        images=[key for key, _ in good],
        captions=[caption_key(row.text, weights) for _, row in good],
        names=[f"{row.file} (row {row.row})" for _, row in good],
        empty_caption=caption_key("", weights),
        counts={
            "samples": len(good),
            "images": len({key for key, _ in good}),
            "captions": len(captions) - 1,
            "skipped": len(rows) - len(good),
            "vae_encodes": encoded,
            "text_encoder_calls": embedded,
        },
    )
