"""The denoising loop as a pure function: the same seeds, prompts and model give the same latents.

In the spirit of k-diffusion (https://github.com/crowsonkb/k-diffusion): no pipeline object, no state. Noise belongs to
the image, not to the batch: each image has its own generators, so the other images and its place in the batch change no
bit. The batch size does change bits, so callers keep it fixed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from medsyn.models.compiled import WholeUNet
from medsyn.models.device import sent
from medsyn.models.unet_calls import UNetCalls
from medsyn.schedulers import NOTHING_LEFT_OUT, SOLVERS, SchedulerName, Shortcuts
from medsyn.seeds import seed


@dataclass(frozen=True)
class Samples:
    """The result of one batch; the lists have one entry per image."""

    latents: Tensor  # [B, c, h, w], float32
    finite: list[bool]
    precision: list[str]  # the UNet's dtype, or "float32" where half precision overflowed
    evaluations: int  # rows the whole UNet computed per image: its calls, guided ones twice, again for a repetition


def build_scheduler(name: SchedulerName, scheduler_config: Mapping[str, Any], steps: int) -> Any:
    """A fresh diffusers scheduler with its timesteps set, good for one run: solvers remember past steps.

    Args:
        name: the sampler, see `medsyn.schedulers`.
        scheduler_config: the model's own: noise schedule, prediction type, offset of the steps.
        steps: number of denoising steps.
    """
    solver = SOLVERS[name]
    scheduler = getattr(diffusers, solver.scheduler).from_config(dict(scheduler_config), **solver.settings)
    scheduler.set_timesteps(steps)
    return scheduler


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Unit Gaussian noise [B, c, h, w], float32 on the CPU, image i a function of `seeds[i]` alone.

    NumPy draws it: PyTorch's CPU generator keeps only 32 bits of its seed, so among a million images about a hundred
    pairs would start from the same noise.
    """
    drawn = [np.random.default_rng(image).standard_normal(shape, dtype=np.float32) for image in seeds]
    return torch.from_numpy(np.stack(drawn))


def _step_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image for the noise that stochastic schedulers add at every step."""
    return [torch.Generator().manual_seed(seed("sampler-steps", image)) for image in seeds]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598) for a batch."""

    scales: Tensor  # [B], all 1 or none of them: a scale of 1 needs no unconditional half
    negative_hidden: Tensor  # text features of the negative prompts [B or 1, 77 k, D]
    shortcuts: Shortcuts = NOTHING_LEFT_OUT


@torch.no_grad()
def sample(
    unet: Any,
    scheduler: Any,
    hidden: Tensor,
    guidance: Guidance,
    noise: Tensor,
    seeds: Sequence[int],
    after_step: Callable[[int], None] = lambda _: None,
    whole: WholeUNet | None = None,
) -> tuple[Tensor, int]:
    """Denoise a batch.

    Latents stay in float32 whatever the UNet's dtype. Both halves of the guidance go through the UNet as one
    batch. On a GPU nothing waits for the result, unless the sampler adds noise at every step.

    Args:
        unet: a `UNet2DConditionModel`.
        scheduler: fresh from `build_scheduler`.
        hidden: text features of the prompts [B, 77 k, D].
        guidance: towards the prompts and away from the negative prompts.
        noise: unit noise [B, c, h, w] from `initial_noise`.
        seeds: one per image, for stochastic schedulers.
        after_step: called with the number of each step once the device has been given all of it.
        whole: the UNet's predictions, if they are to be computed otherwise than by calling it.

    Returns:
        The latents [B, c, h, w] in float32 on the UNet's device, and the rows that the whole UNet computed
        per image; those of its outermost layers alone do not count.
    """
    device, dtype = unet.device, unet.dtype
    conditional = hidden.to(device, dtype)
    both = torch.cat([guidance.negative_hidden.to(device, dtype).expand_as(conditional), conditional])
    scales = sent(guidance.scales, device).float().view(-1, 1, 1, 1)
    options: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = _step_generators(seeds)
    latents = sent(noise, device).float() * scheduler.init_noise_sigma
    times = sent(scheduler.timesteps, device)  # the UNet would copy each of them and wait for the copy
    calls = guidance.shortcuts.calls(len(scheduler.timesteps), bool((guidance.scales != 1).any()))
    predict = UNetCalls(unet, calls, whole)
    for index, (call, timestep) in enumerate(zip(calls, scheduler.timesteps, strict=True)):
        rows = scheduler.scale_model_input(latents, timestep).to(dtype)
        rows, context = (torch.cat([rows, rows]), both) if call.guided else (rows, conditional)
        prediction = predict(index, rows, times[index], context).float()
        if call.guided:
            away, towards = prediction.chunk(2)
            prediction = away + scales * (towards - away)
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
        after_step(index)
    return latents, sum(2 if call.guided else 1 for call in calls if call.deep)


@dataclass(frozen=True)
class Run:
    """A batch to denoise: what `sample` takes, with a function that makes a fresh scheduler."""

    unet: Any
    new_scheduler: Callable[[], Any]
    hidden: Tensor
    guidance: Guidance
    noise: Tensor
    seeds: Sequence[int]
    whole: WholeUNet | None = None  # see `sample`

    def begin(self, after_step: Callable[[int], None] = lambda _: None) -> tuple[Tensor, int]:
        """`sample`, in the UNet's precision: latents that may not be finite, and the rows computed."""
        run = self.unet, self.new_scheduler(), self.hidden, self.guidance, self.noise, self.seeds
        return sample(*run, after_step, self.whole)

    def finish(self, latents: Tensor, evaluations: int) -> Samples:
        """What `begin` came to, repeated in float32 if half precision overflowed.

        Only the images that overflowed take the new result. The repetition runs the whole batch, so that its size is
        the same; finite images keep their bits whatever the other images do.
        """
        dtype, finite = self.unet.dtype, finite_rows(latents).tolist()
        if dtype == torch.float32 or all(finite):
            return Samples(latents, finite, [_name(dtype)] * len(finite), evaluations)
        try:
            self.unet.float()  # and back: widening a half-precision weight is exact
            again, evaluations_again = replace(self, whole=None).begin()
            finite_again = finite_rows(again).tolist()
        finally:
            self.unet.to(dtype)
        keep = torch.tensor(finite, device=latents.device).view(-1, 1, 1, 1)
        return Samples(
            latents=torch.where(keep, latents, again),
            finite=[first or second for first, second in zip(finite, finite_again, strict=True)],
            precision=[_name(dtype) if first else "float32" for first in finite],
            evaluations=evaluations + evaluations_again,
        )


def finite_rows(values: Tensor) -> Tensor:
    """Which of [N, ...] have only finite numbers: bool [N], on the same device."""
    return values.isfinite().flatten(1).all(dim=1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
