"""A modality's training data: its real images as latents and their captions as text features, each encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsyn import time_use
from medsyn.config import AugmentSection, Config
from medsyn.data.images.latent_cache import TensorCache, caption_key
from medsyn.data.images.read import Image
from medsyn.data.tables.read import ImageRow, dataset_of
from medsyn.data.tables.split import hold_out
from medsyn.errors import InputError
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.models.weights import weights_fingerprint
from medsyn.stage import Control
from medsyn.training.encode_rows import encode_rows
from medsyn.training.finetune.augment import names_a_side, versions
from medsyn.training.finetune.balance import repeats
from medsyn.training.schedule import Draws


@dataclass(frozen=True)
class LatentDataset:
    """Training samples as keys into a cache of latents and text features; sample i is an image and its caption.

    One that is seen several times in an epoch is there as often.
    """

    cache: TensorCache
    images: list[str]
    captions: list[str]
    names: list[str]  # of the samples, as their table names them, for messages
    empty_caption: str
    counts: dict[str, int]  # for the summary
    versions: list[int] | None = None  # of each sample's image that may be used; None: the cache has one of each

    def __len__(self) -> int:
        return len(self.images)

    def keys(self) -> dict[str, Any]:
        """Everything but the cache, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cache"}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(c, h, w)."""
        return tuple(self.cache.read(self.images[0], "mean").shape[-3:])

    def batch(self, chosen: Draws) -> tuple[Tensor, Tensor]:
        """Latents [B, c, h, w], drawn from the VAE's posterior, and text features [B, 77 k, D]; float32, on the CPU."""
        captions = [
            self.empty_caption if dropped else self.captions[i]
            for i, dropped in zip(chosen.samples, chosen.unconditional, strict=True)
        ]
        mean, std = (torch.stack(self._posteriors(chosen, name)).float() for name in ("mean", "std"))
        hidden = torch.stack([self.cache.read(key, "hidden") for key in captions]).float()
        return mean + std * torch.from_numpy(chosen.posterior), hidden

    def plain(self, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents [B, c, h, w], the mean of the VAE's posterior, and text features [B, 77 k, D] of samples."""
        mean = torch.stack([self.cache.read(self.images[i], "mean") for i in samples]).float()
        return mean, torch.stack([self.cache.read(self.captions[i], "hidden") for i in samples]).float()

    def _posteriors(self, chosen: Draws, name: str) -> list[Tensor]:
        """One of the posterior's tensors [c, h, w] of each sample, of the version that was drawn."""
        tensors = [self.cache.read(self.images[i], name) for i in chosen.samples]
        if self.versions is None:
            return tensors
        places = [int(draw * self.versions[i]) for i, draw in zip(chosen.samples, chosen.version, strict=True)]
        return [tensor[place] for tensor, place in zip(tensors, places, strict=True)]


def training_rows(config: Config, modality: str | None) -> tuple[list[ImageRow], list[ImageRow]]:
    """The training rows of one modality, or of all of the campaign's, and those that are held out for evaluation.

    Raises:
        InputProblems: the table has bad rows (`data.strict`) or none.
        InputError: the table has no image of the modality, or of one of them.
    """
    data, wanted = config.data, config.data.modalities if modality is None else [modality]
    everything = dataset_of(data).require(data.strict)
    is_held_out = hold_out(everything, data.held_out_fraction, config.campaign.seed)
    rows = [row for row in everything if row.modality in wanted]
    kept = [row for row in rows if not is_held_out(row)]
    if absent := [name for name in wanted if all(row.modality != name for row in rows)]:
        raise InputError(data.table, f"has no images of {', '.join(absent)}", key="data.modalities")
    return kept, [row for row in rows if is_held_out(row)]


@time_use.of(time_use.PAINTING)
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
    weights, chunks = weights_fingerprint(config.model_paths.stable_diffusion), config.data.chunks
    augment, campaign_seed = config.finetune.augment, config.campaign.seed
    is_varied = augment.versions is not None

    def encode(_: Image, pixels: Tensor) -> dict[str, Tensor]:
        made = versions(augment, pixels, campaign_seed) if is_varied else [pixels]
        encoded = [load_system().encode(each) for each in made]  # one at a time: others in a batch change bits
        mean, std = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        return {"mean": mean, "std": std} if is_varied else {"mean": mean[0], "std": std[0]}

    def embed(caption: str) -> dict[str, Tensor]:
        return {"hidden": load_system().embed(caption)[0]}

    good, encoded = encode_rows(
        config,
        config.data.table,
        rows,
        hashes,
        encode,
        cache,
        control,
        config.data.allow_synthetic,
        [augment.model_dump(), campaign_seed] if is_varied else (),
    )
    times = repeats([row.text for _, row in good], config.finetune.rare_captions)
    seen = [pair for pair, number in zip(good, times, strict=True) for _ in range(number)]
    captions = {caption_key(text, weights, chunks): text for text in ["", *(row.text for _, row in good)]}
    embedded, _ = cache.fill(captions, str, embed, control, "caption")
    return LatentDataset(
        cache=cache,
        images=[key for key, _ in seen],
        captions=[caption_key(row.text, weights, chunks) for _, row in seen],
        names=[f"{row.file} (row {row.row})" for _, row in seen],
        empty_caption=caption_key("", weights, chunks),
        counts={
            "samples": len(good),
            **({"samples_with_repeats": len(seen)} if config.finetune.rare_captions else {}),
            "images": len({key for key, _ in good}),
            "captions": len(captions) - 1,
            "skipped": len(rows) - len(good),
            "vae_encodes": encoded * augment.encoded,
            "text_encoder_calls": embedded,
        },
        versions=_usable_versions(augment, seen) if is_varied else None,
    )


def _usable_versions(augment: AugmentSection, rows: Sequence[tuple[str, ImageRow]]) -> list[int]:
    """How many of the first versions of each (key, row)'s image may be used: the mirrored ones come last."""
    with_side = {key for key, row in rows if names_a_side(row.text)}
    return [(augment.versions or 1) if key in with_side else augment.encoded for key, _ in rows]
