from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

from medsyn.campaign.estimate import architecture, memory
from medsyn.campaign.estimate.architecture import Architecture
from medsyn.config import PolicySection, ScorerSection, validate
from medsyn.models import weights
from medsyn.models.policy import PolicyMember
from medsyn.models.selector import SelectorMember

# of Stable Diffusion v1.5, what its config.json files say about shapes
SD15_UNET = {
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD15_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 512,
}
SD15_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}


def sd15(resolution: int) -> Architecture:
    return architecture.describe(SD15_UNET, SD15_VAE, SD15_TEXT, resolution)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def flops(module: nn.Module, *inputs: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


def embedded(part: str) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((weights.embedded_directory() / part / "config.json").read_text())
    return settings


@pytest.fixture(scope="module")
def unet() -> Any:
    return UNet2DConditionModel.from_pretrained(str(weights.embedded_directory() / "unet"))


@pytest.fixture(scope="module")
def vae() -> Any:
    return AutoencoderKL.from_pretrained(str(weights.embedded_directory() / "vae"))


@pytest.fixture(scope="module")
def text_encoder() -> Any:
    return CLIPTextModel.from_pretrained(str(weights.embedded_directory() / "text_encoder"), torch_dtype=torch.float32)


def test_sd15_has_its_published_parameters() -> None:
    model = sd15(512)
    assert model.unet.parameters == 859_520_964
    assert model.vae_parameters == 83_653_863
    assert model.text.parameters == 123_060_480


@pytest.mark.parametrize(
    ("resolution", "unet", "decoder", "encoder"),
    [(128, 45.8, 155, 68), (256, 180.1, 622, 273), (512, 803.3, 2515, 1117)],
)
def test_sd15_computes_what_torch_counted(resolution: int, unet: float, decoder: float, encoder: float) -> None:
    model = sd15(resolution)
    counted = [part.flops / 1e9 for part in (model.unet, model.decoder, model.encoder, model.text)]
    assert counted == pytest.approx([unet, decoder, encoder, 13.3], rel=0.005)


def test_sd15_saves_what_hooks_on_saved_tensors_counted() -> None:
    gib = [sd15(resolution).unet.saved * 4 / 2**30 for resolution in (256, 512)]
    assert gib == pytest.approx([0.44, 1.74], rel=0.02)
    checkpointed = sd15(256).unet
    assert (checkpointed.inputs + checkpointed.block) * 4 / 2**30 == pytest.approx(0.11, rel=0.1)


def test_what_is_assumed_without_weights_is_sd15() -> None:
    assumed = architecture.read("no/such-model", 256)
    assert assumed.assumed
    assert assumed == Architecture(**{**vars(sd15(256)), "assumed": True})


@pytest.mark.parametrize("damage", ["not JSON", '{"block_out_channels": 3}', "[]"])
def test_a_configuration_that_is_not_understood_is_no_traceback(tmp_path: Path, damage: str) -> None:
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(damage)
    assert architecture.read(str(tmp_path), 64).assumed


def test_the_embedded_model_has_the_parameters_that_torch_counts(unet: Any, vae: Any, text_encoder: Any) -> None:
    model = architecture.read("embedded", 64)
    counted = (model.unet.parameters, model.vae_parameters, model.text.parameters, model.assumed)
    assert counted == (parameters(unet), parameters(vae), parameters(text_encoder), False)
    assert (model.latent, model.text_width) == (4 * 16 * 16, 64)


@pytest.mark.parametrize("resolution", [64, 72])  # 72: latents of 18, which halve to 9 and 5
def test_the_embedded_model_computes_what_torch_counts(unet: Any, vae: Any, text_encoder: Any, resolution: int) -> None:
    model, side = architecture.read("embedded", resolution), resolution // 4
    latent, image = torch.zeros(1, 4, side, side), torch.zeros(1, 3, resolution, resolution)
    assert model.unet.flops == flops(unet, latent, torch.tensor([1]), torch.zeros(1, 77, 64))
    assert model.encoder.flops == flops(nn.Sequential(vae.encoder, vae.quant_conv), image)
    assert model.decoder.flops == flops(nn.Sequential(vae.post_quant_conv, vae.decoder), latent)
    assert model.text.flops == flops(text_encoder, torch.zeros(1, 77, dtype=torch.int64))


def test_more_of_a_prompt_is_more_work(unet: Any, text_encoder: Any) -> None:
    once, model = architecture.read("embedded", 64), architecture.read("embedded", 64, chunks=3)
    assert model.unet.flops == flops(unet, torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, 3 * 77, 64))
    assert model.text.flops == 3 * once.text.flops and model.text.parameters == once.text.parameters
    assert (once.prompt, model.prompt) == (77 * 64, 3 * 77 * 64)


def test_images_on_the_way_take_memory_where_a_step_leaves_less_than_the_vae_needs() -> None:
    model = architecture.read("no/such-model", 256)  # SD v1.5 is assumed
    sizes = []
    for images in (None, 4):
        small = {"train_batch_size": 1, "gradient_checkpointing": True, "validate_every": 10}
        config = validate({"finetune": {**small, "validation_images": images}}, "test")
        sizes.append(memory.memory(config, "finetune", model))
    assert sizes[0] < sizes[1] < sizes[0] + 4 * (model.vae_parameters + 8 * model.decoder.widest)


def test_what_a_backward_pass_keeps_of_the_embedded_model(unet: Any) -> None:
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    unet.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = unet(torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, 77, 64)).sample
    assert result.requires_grad
    assert architecture.read("embedded", 64).unet.saved == pytest.approx(sum(kept.values()), rel=0.1)


def test_convolutions_are_counted_as_built() -> None:
    section = ScorerSection(encoder="conv")
    count, built = architecture.scorer(section), SelectorMember(section).image.convolutions
    assert count.parameters == parameters(built)
    assert count.flops == pytest.approx(flops(built, torch.zeros(1, 1, 256, 256)), rel=0.01)
    assert architecture.scorer(ScorerSection(encoder="none")).parameters == 0


def test_the_selector_is_little_more_than_its_transformer() -> None:
    section = ScorerSection(encoder="vit")
    count = architecture.scorer(section)
    selector = SelectorMember(section)
    assert count.parameters == parameters(selector.image.transformer)
    assert parameters(selector) < 1.05 * count.parameters
    selector.image.transformer.train()  # in eval mode torch takes a fused path that its counter does not see
    assert count.flops == pytest.approx(flops(selector.image.transformer, torch.zeros(1, 1, 256, 256)), rel=0.01)


@pytest.mark.parametrize("size", [64, 192, 256])
def test_the_policy_is_little_more_than_its_convolutions(size: int) -> None:
    section = PolicySection(image_size=size)
    count, policy = architecture.scorer(section), PolicyMember(section, text_dim=768)
    assert count.parameters == parameters(policy.image.grid)
    assert parameters(policy) < 1.8 * count.parameters
    assert count.flops == pytest.approx(flops(policy.image.grid, torch.zeros(1, 3, size, size)), rel=0.01)
    of_transformer = architecture.scorer(PolicySection(image_size=size, encoder="vit"))
    assert of_transformer == architecture.scorer(ScorerSection(image_size=size))


@pytest.mark.parametrize("resolution", [128, 256, 512])
def test_a_larger_picture_costs_more(resolution: int) -> None:
    small, large = sd15(resolution // 2), sd15(resolution)
    for part in ("unet", "encoder", "decoder"):
        one, other = getattr(small, part), getattr(large, part)
        assert one.parameters == other.parameters
        assert one.flops < other.flops
        assert one.saved < other.saved
        assert one.widest < other.widest
