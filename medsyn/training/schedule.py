"""What step `n` of a training run does, as pure functions of `n`: no state that could be lost.

Learning rate, sample order, timesteps, noise and caption dropout all follow from (seed, step), so a run that is killed
and restarted at step `n` does exactly what it would have done. No torch: numpy's generators give the same numbers
on every machine and for every split of a batch into micro-batches.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import numpy as np

from medsyn.config import FinetuneSection
from medsyn.seeds import seed

RandomKey = tuple[str | int, ...]  # what a run's randomness depends on: campaign seed, stage, task


@dataclass(frozen=True)
class Draws:
    """Every random choice of one optimizer step, in the order of its batch of B samples."""

    samples: np.ndarray  # int64 [B], which images
    timesteps: np.ndarray  # int64 [B], noise level of each
    unconditional: np.ndarray  # bool [B], whose caption is dropped
    posterior: np.ndarray  # float32 [B, c, h, w], which sample of the VAE's posterior
    noise: np.ndarray  # float32 [B, c, h, w]
    version: np.ndarray  # float64 [B] in 0..1, which version of each image, where there are several

    def part(self, places: slice) -> Draws:
        """The choices for some of the samples."""
        return Draws(*(getattr(self, field.name)[places] for field in fields(self)))


def warmup_cosine(step: int, total: int, peak: float, warmup: int, floor: float = 0.0) -> float:
    """The learning rate of step `step` of `total`: linear warm-up to `peak`, then cosine decay to `floor` * `peak`.

    A `floor` of 1 leaves the rate constant after the warm-up, which may be longer than the run.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    length = max(1, total - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(step - warmup, length) / length)))


def learning_rate(step: int, section: FinetuneSection) -> float:
    """The learning rate of one fine-tuning step, as configured."""
    floor = 1.0 if section.lr_scheduler == "constant" else 0.0
    return warmup_cosine(step, section.max_train_steps, section.learning_rate, section.lr_warmup_steps, floor)


@functools.lru_cache(maxsize=2)  # a batch mostly touches one epoch, or the end of one and the start of the next
def epoch_order(key: RandomKey, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` samples, each once: int64 [count]."""
    order = np.random.default_rng(seed(*key, "order", epoch)).permutation(count)
    order.flags.writeable = False
    return order


def samples_of_step(key: RandomKey, step: int, batch: int, count: int) -> np.ndarray:
    """The samples of one step, int64 [batch]. Epochs follow each other without a gap: no sample is left out."""
    positions = range(step * batch, (step + 1) * batch)
    return np.array([epoch_order(key, position // count, count)[position % count] for position in positions])


def draws(
    key: RandomKey,
    step: int,
    batch: int,
    count: int,
    latent_shape: tuple[int, ...],
    num_timesteps: int,
    caption_dropout: float,
    noise_offset: float = 0.0,
) -> Draws:
    """Every random choice of one step.

    Args:
        key: what the run's randomness depends on.
        step: optimizer step, 0-based.
        batch: samples per optimizer step, all micro-batches together.
        count: number of training samples.
        latent_shape: (c, h, w).
        num_timesteps: length of the noise schedule.
        caption_dropout: share of samples trained without their caption, for classifier-free guidance (Ho and
            Salimans 2022).
        noise_offset: spread of a constant that is added to each channel of the noise, so that images of other mean
            brightness than mid-grey can be learned (N. Guttenberg 2023); medical images are mostly dark.
    """
    rng = np.random.default_rng(seed(*key, "draws", step))
    samples = samples_of_step(key, step, batch, count)
    timesteps = rng.integers(0, num_timesteps, batch)
    unconditional = rng.random(batch) < caption_dropout
    posterior = rng.standard_normal((batch, *latent_shape), dtype=np.float32)
    noise = rng.standard_normal((batch, *latent_shape), dtype=np.float32)
    # later choices are drawn later, so that the ones above are what they were without them
    shift = rng.standard_normal((batch, latent_shape[0], 1, 1), dtype=np.float32)
    version = rng.random(batch)
    return Draws(samples, timesteps, unconditional, posterior, noise + noise_offset * shift, version)
