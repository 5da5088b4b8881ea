"""What a configuration asks for, against the networks themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from medsyn.errors import InputError
from medsyn.models import tensors

SD15_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
SD15_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SMALL = {"block_out_channels": [32, 64], "norm_num_groups": 8, "attention_head_dim": 4, "cross_attention_dim": 24}
ENDS = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}


def text_encoder(**settings: Any) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**settings))


@pytest.mark.parametrize(
    ("part", "build", "settings"),
    [
        ("unet", UNet2DConditionModel, {"cross_attention_dim": 768}),  # Stable Diffusion v1.5
        ("unet", UNet2DConditionModel, {**SMALL, **ENDS, "layers_per_block": 3, "in_channels": 9}),
        ("unet", UNet2DConditionModel, {**SMALL, **ENDS, "transformer_layers_per_block": 2}),
        # v2's: linear projections, heads by level
        ("unet", UNet2DConditionModel, {**SMALL, **ENDS, "use_linear_projection": True, "attention_head_dim": [2, 4]}),
        ("vae", AutoencoderKL, SD15_VAE),
        ("vae", AutoencoderKL, {"block_out_channels": [32], "latent_channels": 16}),
        ("text_encoder", text_encoder, SD15_TEXT),
        ("text_encoder", text_encoder, {"num_hidden_layers": 1}),
    ],
)
def test_names_and_shapes_are_those_of_the_network(part: str, build: Any, settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        network: nn.Module = build(**settings)
    theirs = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert tensors.expected(part, settings) == theirs


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("unet", {"addition_embed_type": "text_time"}),
        ("unet", {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]}),
        ("unet", {"transformer_layers_per_block": [1, 2, 10]}),
        ("vae", {"use_quant_conv": False}),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"]}),
    ],
)
def test_networks_of_another_kind_are_left_to_the_task(part: str, settings: dict[str, Any]) -> None:
    assert tensors.expected(part, settings) is None


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("unet", {"block_out_channels": "wide"}),
        ("unet", {"block_out_channels": []}),
        ("unet", {"down_block_types": ["DownBlock2D"]}),
        ("vae", {"layers_per_block": None}),
        ("text_encoder", {"hidden_size": "768"}),
        ("text_encoder", {"num_hidden_layers": "2"}),
    ],
)
def test_values_of_another_kind_are_no_traceback(part: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is not a readable model configuration"):
        tensors.expected(part, settings)
