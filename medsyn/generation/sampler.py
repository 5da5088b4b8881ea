"""The denoising loop as a pure function: the same seeds, prompts and model give the same latents.

In the spirit of k-diffusion (https://github.com/crowsonkb/k-diffusion): no pipeline object, no state. Noise belongs to
the image, not to the batch: each has its own generators, so the images beside it and its place in the batch change no
bit. The batch's size does change bits, so callers keep it fixed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from medsyn.config import SchedulerName
from medsyn.seeds import seed

# name -> (class, settings that the name promises whatever the model's own scheduler was)
_SCHEDULERS: dict[SchedulerName, tuple[Any, dict[str, Any]]] = {
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}


@dataclass(frozen=True)
class Samples:
    """What one batch came to; the lists have one entry per image."""

    latents: Tensor  # [B, c, h, w], float32
    finite: list[bool]
    precision: list[str]  # the UNet's dtype, "float32" where half precision overflowed and was repeated
    evaluations: int  # rows the UNet computed per image: the steps, twice that with guidance, again for a repetition


def build_scheduler(name: SchedulerName, scheduler_config: Mapping[str, Any], steps: int) -> Any:
    """A fresh diffusers scheduler with its timesteps set. Sampling uses it up: solvers remember past steps.

    Args:
        name: the sampler; `dpm` is DPM-Solver++(2M), Lu et al. 2022, https://arxiv.org/abs/2211.01095.
        scheduler_config: the model's own: noise schedule, prediction type, offset of the steps.
        steps: number of denoising steps.
    """
    scheduler_class, settings = _SCHEDULERS[name]
    scheduler = scheduler_class.from_config(dict(scheduler_config), **settings)
    scheduler.set_timesteps(steps)
    return scheduler


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Unit Gaussian noise [B, c, h, w], float32 on the CPU, image i a function of `seeds[i]` alone.

    NumPy draws it: PyTorch's CPU generator keeps 32 bits of its seed, and among a million images about a hundred
    pairs would begin with the same noise.
    """
    drawn = [np.random.default_rng(image).standard_normal(shape, dtype=np.float32) for image in seeds]
    return torch.from_numpy(np.stack(drawn))


def _step_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image for the noise that stochastic schedulers add at every step."""
    return [torch.Generator().manual_seed(seed("sampler-steps", image)) for image in seeds]


@torch.no_grad()
def sample(
    unet: Any,
    scheduler: Any,
    hidden: Tensor,
    negative_hidden: Tensor,
    noise: Tensor,
    seeds: Sequence[int],
    guidance_scale: float | Tensor,
) -> tuple[Tensor, int]:
    """Denoise a batch with classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    Latents stay in float32 whatever the UNet computes in. Both halves of the guidance go through the UNet as one
    batch; a guidance scale of 1 needs no unconditional half.

    Args:
        unet: a `UNet2DConditionModel`.
        scheduler: fresh from `build_scheduler`.
        hidden: text features of the prompts [B, 77, D].
        negative_hidden: text features of the negative prompts [1 or B, 77, D].
        noise: unit noise [B, c, h, w] from `initial_noise`.
        seeds: one per image, for stochastic schedulers.
        guidance_scale: at least 1; as a tensor [B, 1, 1, 1], 1 for all images or for none.

    Returns:
        The latents [B, c, h, w] in float32 on the UNet's device, and the rows the UNet computed per image.
    """
    device, dtype = unet.device, unet.dtype
    guided = bool(torch.as_tensor(guidance_scale != 1).any())
    context = torch.cat([negative_hidden.expand_as(hidden), hidden]) if guided else hidden
    context = context.to(device, dtype)
    options: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = _step_generators(seeds)
    latents = noise.to(device, torch.float32) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        rows = scheduler.scale_model_input(latents, timestep)
        rows = torch.cat([rows, rows]) if guided else rows
        prediction = unet(rows.to(dtype), timestep, encoder_hidden_states=context).sample.float()
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
    return latents, len(scheduler.timesteps) * (2 if guided else 1)


def sample_finite(
    unet: Any,
    new_scheduler: Callable[[], Any],
    hidden: Tensor,
    negative_hidden: Tensor,
    noise: Tensor,
    seeds: Sequence[int],
    guidance_scale: float | Tensor,
) -> Samples:
    """`sample`, once more in float32 if half precision overflowed; only images that overflowed take the new result.

    The repetition runs the whole batch, so that its size is the same; finite images keep their bits, whoever is
    beside them. The arguments are those of `sample`, with a function that makes a fresh scheduler.
    """
    dtype = unet.dtype

    def attempt() -> tuple[Tensor, list[bool], int]:
        latents, evaluations = sample(unet, new_scheduler(), hidden, negative_hidden, noise, seeds, guidance_scale)
        return latents, latents.isfinite().flatten(1).all(dim=1).tolist(), evaluations

    latents, finite, evaluations = attempt()
    if dtype == torch.float32 or all(finite):
        return Samples(latents, finite, [_name(dtype)] * len(finite), evaluations)
    try:
        unet.float()  # and back: widening a half-precision weight is exact
        again, finite_again, evaluations_again = attempt()
    finally:
        unet.to(dtype)
    keep = torch.tensor(finite, device=latents.device).view(-1, 1, 1, 1)
    return Samples(
        latents=torch.where(keep, latents, again),
        finite=[first or second for first, second in zip(finite, finite_again, strict=True)],
        precision=[_name(dtype) if first else "float32" for first in finite],
        evaluations=evaluations + evaluations_again,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
