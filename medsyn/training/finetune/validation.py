"""How well the held-out images are denoised while a UNet is trained: the same noise and timesteps every time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsyn import disk
from medsyn.config import Config, FinetuneSection
from medsyn.seeds import seed
from medsyn.training.finetune.dataset import LatentDataset
from medsyn.training.finetune.loss import denoising_errors
from medsyn.training.finetune.state import TrainState
from medsyn.training.run import TrainingRun

MOST_IMAGES = 64
_PER_IMAGE = 4  # timesteps, one in each quarter of the schedule


def interval(values: Sequence[float] | np.ndarray) -> list[float]:
    """The mean of at least two values and its 95 % interval (normal): [mean, low, high]."""
    mean, half = float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return [mean, mean - half, mean + half]


def is_due(section: FinetuneSection, step: int) -> bool:
    """Whether the held-out loss is measured after `step` steps."""
    return section.validate_every is not None and (
        step % section.validate_every == 0 or step == section.max_train_steps
    )


def best_step(losses: Mapping[int, float], until: int) -> int | None:
    """The step up to `until` with the lowest of these losses, the first of equal ones; None if there is none."""
    trained = [step for step in losses if 0 < step <= until]
    return min(trained, key=lambda step: (losses[step], step), default=None)


class Validation:
    """The held-out loss of one run, and the file with that of every image, from which a resumed run goes on."""

    def __init__(
        self, config: Config, training: TrainingRun, held_out: LatentDataset, scheduler: Any, weights: Tensor
    ) -> None:
        """Prepare to validate.

        Args:
            config: `finetune.validate_every` says how often.
            training: names the file, and what noise and timesteps follow from.
            held_out: at most `MOST_IMAGES` images that are not trained on.
            scheduler: a DDPMScheduler with the noise schedule that is trained with.
            weights: of each timestep in the loss [T].
        """
        self._config, self._data, self._scheduler, self._weights = config, held_out, scheduler, weights
        self._key, self._file = training.key, training.directory / "validation.jsonl"
        self._losses: dict[int, list[float]] = {}  # of every image, by step

    def begin(self, state: TrainState, start: int) -> None:
        """Go on after `start` steps; without any, measure what training begins with."""
        self._losses = {line["step"]: line["losses"] for line in disk.truncate_jsonl(self._file, "step", start)}
        if start == 0 and 0 not in self._losses:
            self._measure(state, 0)

    def line(self, state: TrainState, step: int) -> dict[str, Any]:
        """Measure after `step` steps: for the metrics, the loss and its change since training began, with intervals.

        The change is that of each image, and so far more certain than the difference of two losses.
        """
        losses = self._measure(state, step)
        found: dict[str, Any] = {"held_out_loss": interval(losses)}
        if 0 in self._losses:
            found["held_out_change"] = interval(np.subtract(losses, self._losses[0]))
        return found

    def losses(self) -> dict[int, float]:
        """The mean loss by step, so far."""
        return {step: float(np.mean(losses)) for step, losses in self._losses.items()}

    def _measure(self, state: TrainState, step: int) -> list[float]:
        with state.published_weights(step):
            losses = self._errors(state.unet)
        self._losses[step] = losses
        disk.append_jsonl(self._file, {"step": step, "losses": losses})
        return losses

    @torch.no_grad()
    def _errors(self, unet: Any) -> list[float]:
        """The loss of every image, the mean over its timesteps; from the mean of the VAE's posterior, with captions."""
        size = max(1, self._config.finetune.train_batch_size // _PER_IMAGE)
        errors: list[float] = []
        for first in range(0, len(self._data), size):
            chosen = range(first, min(first + size, len(self._data)))
            rows = [tensor.to(unet.device) for tensor in self._batch(chosen)]
            found = denoising_errors(unet, self._scheduler, self._weights, *rows)
            errors += found.view(len(chosen), _PER_IMAGE).mean(dim=1).tolist()
        return errors

    def _batch(self, images: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, text features, noise and timesteps, `_PER_IMAGE` rows of each image: a function of its number."""
        shape, steps = self._data.latent_shape, self._scheduler.config.num_train_timesteps
        latents, hidden = self._data.plain(images)
        noise, timesteps = [], []
        for image in images:
            rng = np.random.default_rng(seed(*self._key, "validation", image))
            noise.append(rng.standard_normal((_PER_IMAGE, *shape), dtype=np.float32))
            timesteps.append((np.arange(_PER_IMAGE) + rng.random(_PER_IMAGE)) / _PER_IMAGE * steps)
        return (
            latents.repeat_interleave(_PER_IMAGE, dim=0),
            hidden.repeat_interleave(_PER_IMAGE, dim=0),
            torch.from_numpy(np.concatenate(noise)),
            torch.from_numpy(np.concatenate(timesteps).astype(np.int64)),
        )
