"""An even smaller UNet than the tiny one, for tests that train it many times."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from medsyn.models import tiny


def small_unet() -> UNet2DConditionModel:
    """The same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=tiny.TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        )
