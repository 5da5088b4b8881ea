"""What each step of a round sees: pure functions of (key, step), and the predictions of the model before the round.

A unit (a candidate, or a pair) is seen at another noise level in each epoch, up to `LEVELS` of them, one in each part
of the schedule. What the model before the round predicts there is computed before the first step and kept, so that no
second UNet is in memory, whether all weights are trained or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsyn import disk, time_use
from medsyn.data.images.latent_cache import TensorCache
from medsyn.seeds import seed
from medsyn.stage import Control
from medsyn.training.alignment.advantage import Units
from medsyn.training.finetune.precision import autocast
from medsyn.training.schedule import RandomKey, epoch_order

LEVELS = 8  # noise levels that a unit is seen at
_SHARD_ENTRIES = 256  # the most predictions that a kill can cost


@dataclass(frozen=True)
class Seen:
    """The part of a step's batch that is learned from candidates: N rows of U units, those of a pair neighbours."""

    latents: Tensor  # [N, c, h, w]
    hidden: Tensor  # [N, 77 k, D]
    noise: Tensor  # [N, c, h, w]
    timesteps: Tensor  # int64 [N]
    reference: Tensor  # [N, c, h, w]
    advantage: Tensor  # [U]


@dataclass(frozen=True)
class Lessons:
    """The units of one round, and where what they need is kept."""

    key: RandomKey
    units: Units
    latents: Sequence[str]  # of every candidate: its key in `cache`
    captions: Sequence[str]  # its prompt's key in `texts`
    cache: TensorCache
    texts: TensorCache
    model: str  # fingerprint of the model before the round, and of the precision that it predicts in
    num_timesteps: int
    latent_shape: tuple[int, ...]
    per_step: int  # units
    _drawn: dict[tuple[int, int], tuple[np.ndarray, int]] = field(default_factory=dict)

    def at(self, step: int) -> Seen:
        """What step `step` sees; `predict` must have come before."""
        chosen = self._units_of(step)
        rows = [(int(row), unit, level) for unit, level in chosen for row in self.units.rows[unit]]
        draws = [self._draw(unit, level) for _, unit, level in rows]
        reference = [self.cache.read(self._reference_key(*one), "predicted") for one in rows]
        return Seen(
            torch.stack([self.cache.read(self.latents[row], "latents") for row, _, _ in rows]),
            torch.stack([self.texts.read(self.captions[row], "hidden") for row, _, _ in rows]).float(),
            torch.from_numpy(np.stack([noise for noise, _ in draws])),
            torch.tensor([timestep for _, timestep in draws]),
            torch.stack(reference),
            torch.tensor([self.units.advantage[unit] for unit, _ in chosen], dtype=torch.float32),
        )

    def _units_of(self, step: int) -> list[tuple[int, int]]:
        """(unit, level) of each unit of a step: epochs follow one another without a gap."""
        count, found = len(self.units), []
        for position in range(step * self.per_step, (step + 1) * self.per_step):
            epoch, place = divmod(position, count)
            unit = int(epoch_order((*self.key, "units"), epoch, count)[place])
            found.append((unit, self._level(unit, epoch)))
        return found

    def _level(self, unit: int, epoch: int) -> int:
        """The part of the schedule that a unit is seen at: another one in every epoch, until there are no more."""
        order = np.random.default_rng(seed(*self.key, "levels", unit)).permutation(LEVELS)
        return int(order[epoch % LEVELS])

    def _draw(self, unit: int, level: int) -> tuple[np.ndarray, int]:
        """Noise [c, h, w] and timestep: the same for both images of a pair, without which they cannot be compared."""
        if (unit, level) not in self._drawn:
            rng = np.random.default_rng(seed(*self.key, "noise", unit, level))
            timestep = int((level + rng.random()) / LEVELS * self.num_timesteps)
            drawn = rng.standard_normal(self.latent_shape, dtype=np.float32), timestep
            if len(self._drawn) > 4096:  # of SD at 256 px: 64 MiB
                self._drawn.clear()
            self._drawn[unit, level] = drawn
        return self._drawn[unit, level]

    def _reference_key(self, row: int, unit: int, level: int) -> str:
        return disk.fingerprint(
            ["reference", self.model, self.latents[row], self.captions[row], *self.key, unit, level, LEVELS]
        )

    @time_use.of(time_use.TRAINING)
    @torch.no_grad()
    def predict(self, unet: Any, scheduler: Any, dtype: torch.dtype, steps: int, batch: int, control: Control) -> None:
        """Keep what `unet` predicts wherever the first `steps` steps will look; what is there already stays.

        Raises:
            Saved: a stop was requested; what has been predicted is in the cache.
        """
        seen = dict.fromkeys(one for step in range(steps) for one in self._units_of(step))
        rows = [(int(row), unit, level) for unit, level in seen for row in self.units.rows[unit]]
        parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        fresh: dict[str, dict[str, Tensor]] = {}
        for number, part in enumerate(parts, 1):
            keys = [self._reference_key(*one) for one in part]
            if any(key not in self.cache for key in keys):
                made = self._predicted(part, unet, scheduler, dtype)
                fresh |= {key: {"predicted": made[place]} for place, key in enumerate(keys)}
            if len(fresh) >= _SHARD_ENTRIES or control.stop_requested:
                self.cache.add(fresh)
                fresh = {}
                control.leave_if_asked()
            control.heartbeat(number, len(parts), "reference")
        self.cache.add(fresh)

    def _predicted(self, part: Sequence[tuple[int, int, int]], unet: Any, scheduler: Any, dtype: torch.dtype) -> Tensor:
        """What `unet` predicts for (row, unit, level) [N, c, h, w], on the CPU."""
        draws = [self._draw(unit, level) for _, unit, level in part]
        latents = torch.stack([self.cache.read(self.latents[row], "latents") for row, _, _ in part])
        hidden = torch.stack([self.texts.read(self.captions[row], "hidden") for row, _, _ in part]).float()
        noise, timesteps = (
            torch.from_numpy(np.stack([noise for noise, _ in draws])),
            torch.tensor([t for _, t in draws]),
        )
        noisy = scheduler.add_noise(latents, noise, timesteps).to(unet.device)
        with autocast(dtype, unet.device):
            predicted: Tensor = unet(noisy, timesteps.to(unet.device), hidden.to(unet.device)).sample
        return predicted.float().cpu()
