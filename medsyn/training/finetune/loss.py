"""The denoising loss, and how much each timestep counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def min_snr_weights(alphas_cumprod: Tensor, gamma: float | None, prediction_type: str) -> Tensor:
    """Loss weight of every timestep [T]: min-SNR-gamma (Hang et al. 2023), or 1 without a gamma.

    The method weights the error of x0 with min(SNR, gamma). The error of epsilon is SNR times that of x0, the error of
    v is SNR + 1 times.
    """
    if gamma is None:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, and 1 where snr is 0


def denoising_loss(
    unet: nn.Module,
    scheduler: Any,
    weights: Tensor,
    latents: Tensor,
    hidden: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The mean of `denoising_errors`, a scalar."""
    return denoising_errors(unet, scheduler, weights, latents, hidden, noise, timesteps).mean()


def denoising_errors(
    unet: nn.Module,
    scheduler: Any,
    weights: Tensor,
    latents: Tensor,
    hidden: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The weighted mean squared error of each sample [N].

    Args:
        unet: a diffusers UNet that predicts what the scheduler's `prediction_type` says.
        scheduler: a DDPMScheduler with the model's own noise schedule.
        weights: per timestep [T].
        latents: [N, c, h, w].
        hidden: text features [N, 77 k, D].
        noise: [N, c, h, w].
        timesteps: int64 [N].
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
    predicted = unet(noisy, timesteps, hidden).sample.float()
    return (predicted - target).square().mean(dim=(1, 2, 3)) * weights[timesteps]
