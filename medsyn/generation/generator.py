"""A batch, and the blocks made of batches: sample, decode, look, keep or try again.

An image is a function of the campaign's seed, its prompt, replicate and attempt, the weights and the settings. Every
batch has the same size, because the size changes bits; the companions in it change none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsyn.config import Config
from medsyn.generation.filter import Candidate, Rule, Trial, next_batch
from medsyn.generation.provenance import publish, quantise
from medsyn.generation.sampler import build_scheduler, initial_noise, sample_finite
from medsyn.generation.shard import BlockContent, Item
from medsyn.models.policy import Policy
from medsyn.models.selector import Selector
from medsyn.models.synthetic import SyntheticSystem
from medsyn.seeds import seed


def image_seed(campaign_seed: int, item: Item, attempt: int) -> int:
    """The seed of one candidate, a function of what was asked for and of nothing else."""
    if item.seed is not None:
        return seed(item.seed, "given", item.replicate, attempt)
    return seed(campaign_seed, "image", item.prompt_id, item.replicate, attempt)


@dataclass(frozen=True)
class Batch:
    """One batch of sampled images, without its padding."""

    candidates: list[Candidate]
    pictures: list[np.ndarray]  # uint8 [H, W, 1 or 3]
    unet_evaluations: int  # rows the UNet computed, padding included


@dataclass(frozen=True)
class Generator:
    """One modality in one mode: what stays the same from block to block."""

    config: Config
    facts: Mapping[str, str]  # on record with every image: modality, mode, fingerprints
    system: SyntheticSystem
    selector: Selector | None = None  # the baseline has no scorers
    policy: Policy | None = None

    def block(self, items: Sequence[Item], between_batches: Callable[[int], None]) -> BlockContent:
        """Everything a block holds, in memory.

        Args:
            items: the block's items.
            between_batches: called before each batch with the number of items that are settled; raises to stop.
        """
        started = time.perf_counter()
        rule = Rule.of(self.config.generation, self.facts["mode"])
        trials = [Trial(rule) for _ in items]
        favourites: dict[int, np.ndarray] = {}
        batches = unet_evaluations = 0
        while places := next_batch(trials, self.config.generation.batch_size):
            between_batches(sum(trial.settled for trial in trials))
            batch = self.batch([(items[position], attempt) for position, attempt in places])
            for (position, _), candidate, picture in zip(places, batch.candidates, batch.pictures, strict=True):
                trials[position].add(candidate)
                if trials[position].favourite is candidate:
                    favourites[position] = picture
            batches += 1
            unet_evaluations += batch.unet_evaluations
        published = [
            publish(item, trial, favourites.get(position), self.facts)
            for position, (item, trial) in enumerate(zip(items, trials, strict=True))
        ]
        timing = {
            "seconds": time.perf_counter() - started,
            "device": _device_name(self.system.device),
            "batches": batches,
            "unet_evaluations": unet_evaluations,
        }
        return BlockContent(
            images={record["file"]: image for record, image in published if image is not None},
            manifest=[record for record, _ in published],
            attempts=[
                {"id": item.prompt_id, "replicate": item.replicate, **record}
                for item, trial in zip(items, trials, strict=True)
                for record in trial.records()
            ],
            timing=timing,
        )

    def batch(self, wanted: Sequence[tuple[Item, int]]) -> Batch:
        """Sample, decode and score the attempts `wanted`: one batch of the campaign's size, padded by repetition.

        All of `wanted` have one number of steps, and a guidance scale of 1 or none of them has.
        """
        section, system = self.config.generation, self.system
        padded = [*wanted, *[wanted[-1]] * (section.batch_size - len(wanted))]
        seeds = [image_seed(self.config.campaign.seed, item, attempt) for item, attempt in padded]
        features = [system.embed(item.prompt) for item, _ in padded]
        steps = padded[0][0].num_inference_steps or section.num_inference_steps
        scales = [section.guidance_scale if item.guidance_scale is None else item.guidance_scale for item, _ in padded]
        negatives = [
            section.negative_prompt if item.negative_prompt is None else item.negative_prompt for item, _ in padded
        ]
        samples = sample_finite(
            system.unet,
            lambda: build_scheduler(section.scheduler, system.scheduler_config, steps),
            torch.stack([hidden for hidden, _ in features]),
            torch.stack([system.embed(negative)[0] for negative in negatives]),
            initial_noise(seeds, system.latent_shape(self.config.data.resolution)),
            seeds,
            torch.tensor(scales, device=system.device).view(-1, 1, 1, 1),
        )
        decoded = system.decode(_numbers(samples.latents))
        decodable = decoded.isfinite().flatten(1).all(dim=1).tolist()
        pictures = [
            quantise(pixels, self.facts["modality"]) for pixels in _numbers(decoded).permute(0, 2, 3, 1).cpu().numpy()
        ]
        scores = self._scores(pictures, torch.stack([pooled for _, pooled in features]))
        candidates = [
            _candidate(attempt, seeds[i], samples.finite[i] and decodable[i], *scores[i], samples.precision[i])
            for i, (_, attempt) in enumerate(wanted)
        ]
        return Batch(candidates, pictures[: len(wanted)], samples.evaluations * section.batch_size)

    def _scores(self, pictures: Sequence[np.ndarray], pooled: Tensor) -> list[tuple[float | None, float | None]]:
        """(Selector, Policy) of every picture as it will be written."""
        if self.selector is None or self.policy is None:
            return [(None, None)] * len(pictures)
        pixels = torch.from_numpy(np.stack(pictures)).to(self.system.device).permute(0, 3, 1, 2).float() / 255
        pixels = pixels.expand(-1, 3, -1, -1)
        return list(zip(self.selector.score(pixels).tolist(), self.policy.score(pixels, pooled).tolist(), strict=True))


def _candidate(
    attempt: int, image: int, finite: bool, selector: float | None, policy: float | None, precision: str
) -> Candidate:
    finite = finite and all(score is None or math.isfinite(score) for score in (selector, policy))
    if not finite:
        selector = policy = None
    return Candidate(attempt, image, finite, selector, policy, precision)


def _numbers(values: Tensor) -> Tensor:
    """Zero in the place of what is not finite: the image is lost, the batch keeps its size."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
