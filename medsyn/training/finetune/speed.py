"""What a training step reaches: operations a second, the share of the rate that was measured, the peak of memory."""

from __future__ import annotations

import functools
import json
import resource
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from medsyn.config import Config
from medsyn.text import GIB

_TOKENS = 77


def training_flops(unet: Any, latent_shape: tuple[int, ...], config: Config) -> float:
    """Operations of one training sample: a forward pass, and twice as many backward; once with frozen weights.

    What gradient checkpointing computes again does not count, as it is usual for the use of a device.
    """
    backward = 2 if config.finetune.lora.rank is None else 1
    return (1 + backward) * _forward_flops(
        json.dumps(dict(unet.config), sort_keys=True, default=str), latent_shape, config.data.chunks
    )


@functools.lru_cache(maxsize=8)
def _forward_flops(settings: str, latent_shape: tuple[int, ...], chunks: int) -> int:
    """Of one sample, a multiply-add being two: counted on a UNet without memory, in a second for Stable Diffusion."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(settings))
        inputs = (torch.zeros(1, *latent_shape), torch.zeros(1, dtype=torch.int64))
        hidden = torch.zeros(1, chunks * _TOKENS, unet.config.cross_attention_dim)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet(*inputs, hidden)
    return int(counter.get_total_flops())


def figures(flops: float, seconds: float, config: Config, device: torch.device) -> dict[str, float]:
    """For the metrics: `flops` in `seconds` as TFLOP/s, their share of `cluster.tflops` if that is set, peak memory."""
    rate = flops / max(seconds, 1e-9) / 1e12
    found = {"tflops": round(rate, 4), "peak_memory_gib": round(_peak_bytes(device) / GIB, 3)}
    if config.cluster.tflops:
        found["share_of_tflops"] = round(rate / config.cluster.tflops, 3)
    return found


def _peak_bytes(device: torch.device) -> int:
    """Of the GPU's memory since the process began, or of the process' own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
