"""Candidates: images of the same prompt that the generator samples as the campaign does, with what the scorers say.

Each batch is kept in a cache as soon as it is there, under a hash of all that it depends on: a killed task goes on
where it was and ends with the same bits (on a CPU). The sampler's own float32 latents are kept, so that nothing has to
be encoded to learn from them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsyn import disk, time_use
from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache
from medsyn.models.policy import Policy
from medsyn.models.sampler import build_scheduler
from medsyn.models.score_images import policy_scores, selector_scores, to_pixels
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.seeds import seed
from medsyn.stage import Control
from medsyn.training.own_samples import Asked, paint, sample

VERSION = 1  # raise it when the same settings give other candidates
SCORES = ("selector", "selector_spread", "policy", "policy_spread")  # of `scores_of`, in this order


@dataclass(frozen=True)
class Wanted:
    """An image that is to be sampled."""

    prompt: str
    group: int  # the number of its prompt
    number: int  # among those of its prompt
    seed: int


@dataclass(frozen=True)
class Scored:
    """N sampled images and their scores."""

    wanted: Sequence[Wanted]
    keys: Sequence[str]  # of their latents in the cache
    scores: dict[str, np.ndarray]  # float64 [N]: selector, selector_spread, policy, policy_spread
    finite: np.ndarray  # bool [N]

    @property
    def group(self) -> np.ndarray:
        """int64 [N]: images of the same number are of the same prompt."""
        return np.array([one.group for one in self.wanted], dtype=np.int64)


@dataclass(frozen=True)
class Scorers:
    """What scores images of a modality, and a fingerprint of it."""

    selector: Selector
    policy: Policy
    sha256: str


def wanted(prompts: Sequence[str], each: int, *lot: str | int) -> list[Wanted]:
    """`each` images of every prompt; a prompt that is there again is a group of its own, with other seeds."""
    found, times = [], Counter[str]()
    for group, prompt in enumerate(prompts):
        seeds = [seed(*lot, prompt, times[prompt], number) for number in range(each)]
        found += [Wanted(prompt, group, number, its) for number, its in enumerate(seeds)]
        times[prompt] += 1
    return found


@dataclass(frozen=True)
class Sampler:
    """Samples and scores images of one modality, batch by batch."""

    config: Config
    modality: str
    weights: str  # fingerprint of the generator
    load_system: Callable[[], SyntheticSystem]  # called only if something must be sampled
    load_scorers: Callable[[], Scorers]
    scorers: str  # fingerprint of the scorers
    cache: TensorCache  # that keeps tensors as they are

    def sampled(self, images: Sequence[Wanted], control: Control) -> Scored:
        """All the images, sampling and scoring what the cache lacks.

        Raises:
            Saved: a stop was requested; what has been sampled is in the cache.
        """
        size = self.config.generation.images_per_batch
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        keys: list[str] = []
        scores, finite = [], []
        for number, batch in enumerate(batches, 1):
            made = [self._key(batch, place) for place in range(len(batch))]
            if any(key not in self.cache for key in made):
                self._make(batch, made)
                control.leave_if_asked()
            told = [disk.fingerprint(["scored", self.scorers, key]) for key in made]
            if any(key not in self.cache for key in told):
                self._score(batch, made, told)
            scores += [self.cache.read(key, "scores") for key in told]
            finite += [bool(self.cache.read(key, "finite")) for key in made]
            keys += made
            control.heartbeat(number, len(batches), "batch")
        table = torch.stack(scores).double().numpy()
        is_finite = np.array(finite) & np.isfinite(table).all(axis=1)
        return Scored(images, keys, {name: table[:, place] for place, name in enumerate(SCORES)}, is_finite)

    def picture(self, key: str) -> np.ndarray:
        """uint8 [H, W, 1 or 3] of a sampled image."""
        found: np.ndarray = self.cache.read(key, "picture").numpy()
        return found

    def _key(self, batch: Sequence[Wanted], place: int) -> str:
        config, section = self.config, self.config.generation
        settings: list[object] = [
            section.scheduler,
            section.num_inference_steps,
            section.guidance_scale,
            section.negative_prompt,
        ]
        settings += [vars(section.shortcuts), section.images_per_batch]
        shape = [config.data.resolution, config.data.chunks, config.device.precision, self.modality]
        rows = [[one.prompt, one.seed] for one in batch]  # on some processors a batch's size changes bits
        return disk.fingerprint(["candidate", VERSION, self.weights, settings, shape, rows, place])

    @time_use.of(time_use.PAINTING)
    def _make(self, batch: Sequence[Wanted], keys: Sequence[str]) -> None:
        latents, pictures, finite = sampled_pictures(self.config, self.load_system(), self.modality, batch)
        self.cache.add(
            {
                key: {"latents": latents[place], "picture": pictures[place], "finite": torch.tensor(finite[place])}
                for place, key in enumerate(keys)
            }
        )

    @time_use.of(time_use.SCORING)
    def _score(self, batch: Sequence[Wanted], keys: Sequence[str], told: Sequence[str]) -> None:
        system = self.load_system()
        pictures = torch.stack([self.cache.read(key, "picture") for key in keys])
        found = scores_of(self.load_scorers(), system, self.modality, [one.prompt for one in batch], pictures)
        self.cache.add({key: {"scores": found[place]} for place, key in enumerate(told)})


def sampled_pictures(
    config: Config, system: SyntheticSystem, modality: str, batch: Sequence[Wanted]
) -> tuple[Tensor, Tensor, list[bool]]:
    """A batch as the campaign samples it: latents [N, c, h, w], pictures uint8 [N, H, W, 1 or 3], which are finite."""
    section = config.generation
    rows = [Asked(one.seed, one.prompt, section.negative_prompt, section.guidance_scale) for one in batch]
    fresh = functools.partial(build_scheduler, section.scheduler, system.scheduler_config, section.num_inference_steps)
    latents, finite = sample(system, section, config.data.resolution, rows, fresh)
    pictures, finite = paint(system, section.images_per_batch, latents, finite, modality)
    return latents, pictures, finite


def scores_of(
    scorers: Scorers, system: SyntheticSystem, modality: str, prompts: Sequence[str], pictures: Tensor
) -> Tensor:
    """Float32 [N, 4], on the CPU: selector, selector_spread, policy, policy_spread of pictures [N, H, W, 1 or 3]."""
    pooled = system.pool_all(prompts)
    pixels = to_pixels(pictures, system.device)
    quality = selector_scores(scorers.selector, pixels, modality)
    fit = policy_scores(scorers.policy, pixels, pooled, modality)
    return torch.stack([quality.score, quality.spread, fit.score, fit.spread], dim=1).float().cpu()


def scorers_sha256(*files: Path) -> str:
    """One fingerprint of the weights of scorers."""
    return disk.fingerprint([disk.sha256_file(file) for file in files])
