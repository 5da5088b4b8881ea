"""One batch: from requested items to pictures with scores.

An image is a function of its prompt, replicate, attempt and overrides, the campaign's seed, the weights and the
recipe. Every batch has the same size, because the size changes bits; the other images in it change none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsyn import time_use
from medsyn.config import Config
from medsyn.generation.block_store import Item, image_seed
from medsyn.generation.filter import Candidate
from medsyn.generation.sample.pictures import HostCopy, quantise_all
from medsyn.generation.write.provenance import device_name
from medsyn.models.policy import Policy
from medsyn.models.sampler import Guidance, build_scheduler, initial_noise, sample_finite
from medsyn.models.score_images import policy_scores, selector_scores, to_pixels
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.schedulers import NOTHING_LEFT_OUT, SchedulerName, Shortcuts


@dataclass(frozen=True)
class Recipe:
    """How the images of one modality are sampled, unless an item overrides it."""

    modality: str
    seed: int
    height: int
    width: int
    scheduler: SchedulerName
    num_inference_steps: int
    guidance_scale: float
    batch_size: int
    negative_prompt: str = ""
    shortcuts: Shortcuts = NOTHING_LEFT_OUT

    @classmethod
    def of(cls, config: Config, modality: str) -> Recipe:
        """The recipe of a campaign."""
        section, side = config.generation, config.data.resolution
        return cls(
            modality=modality,
            seed=config.campaign.seed,
            height=side,
            width=side,
            scheduler=section.scheduler,
            num_inference_steps=section.num_inference_steps,
            guidance_scale=section.guidance_scale,
            batch_size=section.images_per_batch,
            negative_prompt=section.negative_prompt,
            shortcuts=section.shortcuts,
        )

    def guidance(self, item: Item) -> float:
        """The guidance scale of an item."""
        return self.guidance_scale if item.guidance_scale is None else item.guidance_scale

    def negative(self, item: Item) -> str:
        """The negative prompt of an item."""
        return self.negative_prompt if item.negative_prompt is None else item.negative_prompt

    def kind(self, item: Item) -> Hashable:
        """What the items of one batch must have in common: the steps, and whether there is any guidance."""
        return item.num_inference_steps or self.num_inference_steps, self.guidance(item) != 1

    def image_seed(self, item: Item, attempt: int) -> int:
        """The seed of one candidate."""
        return image_seed(self.seed, item, attempt)


@dataclass(frozen=True)
class Batch:
    """One batch of sampled images, without its padding, or a block's part of one that several blocks share."""

    candidates: list[Candidate]
    pictures: list[np.ndarray]  # uint8 [H, W, 1 or 3]
    unet_evaluations: int  # rows the whole UNet computed, padding included
    seconds: float
    device: str = ""  # what sampled it
    share: float = 1.0  # which part of a batch this is

    def split(self, owners: Sequence[Hashable]) -> list[Batch]:
        """The part of each owner, in the order in which they come first; together they have all that was spent.

        Args:
            owners: whose each candidate is.
        """
        found, before = [], 0
        for owner in dict.fromkeys(owners):
            mine = [number for number, whose in enumerate(owners) if whose == owner]
            after = before + len(mine)
            share = len(mine) / len(owners)
            part = Batch(
                [self.candidates[number] for number in mine],
                [self.pictures[number] for number in mine],
                self.unet_evaluations * after // len(owners) - self.unet_evaluations * before // len(owners),
                self.seconds * share,
                self.device,
                self.share * share,
            )
            found.append(part)
            before = after
        return found


@dataclass(frozen=True)
class ImageSampler:
    """The models of one modality in one mode, and how they are used."""

    recipe: Recipe
    system: SyntheticSystem
    selector: Selector | None = None  # the baseline has no scorers
    policy: Policy | None = None

    @time_use.of(time_use.PAINTING)
    def sample(self, wanted: Sequence[tuple[Item, int]]) -> Batch:
        """Sample, decode and score the attempts `wanted`: one batch of the recipe's size, padded by repetition.

        Args:
            wanted: 1 to `batch_size` items of one kind (`Recipe.kind`), each with its attempt.
        """
        started = time.perf_counter()
        recipe, system = self.recipe, self.system
        padded = [*wanted, *[wanted[-1]] * (recipe.batch_size - len(wanted))]
        assert len({recipe.kind(item) for item, _ in padded}) == 1, "a batch is of one kind"
        steps = padded[0][0].num_inference_steps or recipe.num_inference_steps
        seeds = [recipe.image_seed(item, attempt) for item, attempt in padded]
        features = system.embed_all([item.prompt for item, _ in padded])
        samples = sample_finite(
            system.unet,
            lambda: build_scheduler(recipe.scheduler, system.scheduler_config, steps),
            torch.stack([hidden for hidden, _ in features]),
            self.guidance([item for item, _ in padded]),
            initial_noise(seeds, system.latent_shape(recipe.height, recipe.width)),
            seeds,
        )
        decoded = system.decode(_numbers(samples.latents))
        decodable = decoded.isfinite().flatten(1).all(dim=1).tolist()
        written = quantise_all(_numbers(decoded), recipe.modality)
        on_the_way = HostCopy(written)  # while the scorers look
        with time_use.of(time_use.SCORING):
            scores = self.scores(written, torch.stack([pooled for _, pooled in features]))
        pictures = on_the_way.pictures()
        candidates = [
            _candidate(attempt, seeds[i], samples.finite[i] and decodable[i], scores[i], samples.precision[i])
            for i, (_, attempt) in enumerate(wanted)
        ]
        evaluations = samples.evaluations * recipe.batch_size
        return Batch(candidates, pictures[: len(wanted)], evaluations, time.perf_counter() - started)

    def guidance(self, items: Sequence[Item]) -> Guidance:
        """The guidance of a batch of these items."""
        recipe = self.recipe
        return Guidance(
            torch.tensor([recipe.guidance(item) for item in items]),
            torch.stack([hidden for hidden, _ in self.system.embed_all([recipe.negative(item) for item in items])]),
            recipe.shortcuts,
        )

    @property
    def device_name(self) -> str:
        """What it runs on, as the records name it."""
        return device_name(self.system.device)

    def scores(self, pictures: Tensor, pooled: Tensor) -> list[dict[str, Any]]:
        """What the scorers say of every picture, uint8 [N, H, W, 1 or 3], as it will be written, for `Candidate`."""
        if self.selector is None or self.policy is None:
            return [{}] * len(pictures)
        pixels = to_pixels(pictures, self.system.device)
        selector = selector_scores(self.selector, pixels, self.recipe.modality)
        policy = policy_scores(self.policy, pixels, pooled, self.recipe.modality)
        columns = {
            "selector": selector.score,
            "policy": policy.score,
            "selector_spread": selector.spread,
            "policy_spread": policy.spread,
            "unfamiliar": selector.unfamiliar,
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


def _candidate(attempt: int, image: int, finite: bool, scores: Mapping[str, Any], precision: str) -> Candidate:
    finite = finite and all(math.isfinite(score) for score in scores.values())
    return Candidate(attempt, image, finite, precision=precision, **(scores if finite else {}))


def _numbers(values: Tensor) -> Tensor:
    """Replace non-finite values by zero: the image is lost, the batch keeps its size."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
