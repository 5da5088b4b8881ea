"""What the generator that is trained samples itself, as the campaign does: in batches of the campaign's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medsyn.config import GenerationSection
from medsyn.models.pictures import quantise_all
from medsyn.models.sampler import Guidance, Run, finite_rows, initial_noise
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.seeds import seed


def choose_prompts(texts: Iterable[str], count: int, *lot: str | int) -> list[str]:
    """`count` of the different texts by lot, each as often as any other: a function of their set and the lot."""
    order = sorted(set(texts), key=lambda text: (seed(*lot, text), text))
    return [order[place % len(order)] for place in range(count if order else 0)]


@dataclass(frozen=True)
class Asked:
    """One image that is to be sampled."""

    seed: int  # of its noise
    prompt: str
    negative: str
    guidance: float
    noise: float = 1.0  # how strong it is


def sample(
    system: SyntheticSystem,
    section: GenerationSection,
    resolution: int,
    rows: Sequence[Asked],
    new_scheduler: Callable[[], Any],
) -> tuple[Tensor, list[bool]]:
    """Sample at most a batch of images.

    Args:
        system: the generator.
        section: how the campaign samples; a batch is filled up to its size, because the size changes bits.
        resolution: pixels of a side.
        rows: at least one; all guided (a scale that is not 1), or none.
        new_scheduler: makes a fresh one (`medsyn.models.sampler.build_scheduler`).

    Returns:
        Latents [N, c, h, w], float32 on the UNet's device, and which of them are finite.
    """
    padded = [*rows, *[rows[-1]] * (section.images_per_batch - len(rows))]
    seeds = [row.seed for row in padded]
    hidden, negative = (
        torch.stack([features for features, _ in system.embed_all(texts)])
        for texts in ([row.prompt for row in padded], [row.negative for row in padded])
    )
    guidance = Guidance(torch.tensor([row.guidance for row in padded]), negative, section.shortcuts)
    noise = initial_noise(seeds, system.latent_shape(resolution))
    noise *= torch.tensor([row.noise for row in padded]).view(-1, 1, 1, 1)
    run = Run(system.unet, new_scheduler, hidden, guidance, noise, seeds)
    samples = run.finish(*run.begin())
    return samples.latents[: len(rows)], samples.finite[: len(rows)]


def paint(
    system: SyntheticSystem, batch_size: int, latents: Tensor, finite: Sequence[bool], modality: str
) -> tuple[Tensor, list[bool]]:
    """The pictures of at most a batch of latents [N, c, h, w], as they would be written, and which are finite.

    The batch is filled up to its size. Pictures are uint8 [N, H, W, 1 or 3].
    """
    count = len(latents)
    latents = latents.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    decoded = system.decode(torch.cat([latents, latents[-1:].expand(batch_size - count, -1, -1, -1)]))[:count]
    readable = finite_rows(decoded).tolist()
    pictures = quantise_all(decoded.nan_to_num(nan=0.0), modality)
    return pictures, [one and other for one, other in zip(finite, readable, strict=True)]
