"""The random model that the tests of this folder sample from: SD's classes at their smallest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from medsyn.models import tiny


def save_random_unet(directory: Path, seed: int) -> None:
    """A UNet of two levels in place of the tiny model's three: these tests run it some thousand times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=tiny.LATENT_CHANNELS,
            out_channels=tiny.LATENT_CHANNELS,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=tiny.TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    unet.save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers directory with random weights; never written to."""
    directory = tiny.build_random(tmp_path_factory.mktemp("tiny") / "model", seed=0)
    save_random_unet(directory / "unet", seed=0)
    return directory


@pytest.fixture(scope="session")
def finetuned_unets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two more `unet/` directories for the tiny model; never written to."""
    root = tmp_path_factory.mktemp("finetuned")
    for seed in (1, 2):
        save_random_unet(root / str(seed) / "unet", seed)
    return [root / "1" / "unet", root / "2" / "unet"]
