"""Adapters on their own: where they go, what they begin as, that merged, loaded and switched off agree."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from medsyn.config import LoraSection
from medsyn.errors import InputProblems
from medsyn.models import tiny
from medsyn.models.lora_targets import lora_parameters, misfits
from medsyn.models.tensors import unet as unet_shapes
from medsyn.training.finetune.lora import ADAPTER_WEIGHTS, add_adapters, merged, save_adapter, without_adapters
from tests.helpers.paths import ROOT
from tests.helpers.small_unet import small_unet

KEY = (0, "finetune", "ct")


def predict(unet: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, hidden = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 77, tiny.TEXT_WIDTH)))
    with torch.no_grad():
        predicted: Tensor = unet(latents, torch.tensor([10, 900]), hidden).sample
    return predicted


def disturbed(section: LoraSection) -> UNet2DConditionModel:
    """A UNet whose adapters do something."""
    unet = small_unet()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in add_adapters(unet, section, KEY).values():
            value.add_(torch.randn(value.shape, generator=generator) / 4)
    return unet


def shapes(unet: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in unet.state_dict().items()}


@pytest.mark.parametrize(
    ("targets", "layers"), [(None, 32), (["to_q"], 8), (["attn2.to_k", "ff.net.2"], 8), (["time_emb_proj"], 8)]
)
def test_adapters_are_on_the_targets_and_nothing_else_is_trained(targets: list[str] | None, layers: int) -> None:
    unet, section = small_unet(), LoraSection(rank=2, targets=targets)
    before = predict(unet)
    count = lora_parameters(shapes(unet), section)
    trained = add_adapters(unet, section, KEY)
    assert len(trained) == 2 * layers
    ends = tuple(f".{target}" for target in targets or ("to_q", "to_k", "to_v", "to_out.0"))
    assert all(name.partition(".lora.")[0].endswith(ends) for name in trained)
    assert sum(value.numel() for value in trained.values()) == count
    assert [name for name, value in unet.named_parameters() if value.requires_grad] == list(trained)
    assert torch.equal(predict(unet), before), "an adapter begins at nothing"


def test_the_first_values_follow_from_the_seed_and_the_layer_alone() -> None:
    section = LoraSection(rank=2)
    torch.manual_seed(3)
    first = add_adapters(small_unet(), section, KEY)
    torch.manual_seed(4)
    fewer = add_adapters(small_unet(), LoraSection(rank=2, targets=["to_v"]), KEY)
    other = add_adapters(small_unet(), section, (1, *KEY[1:]))
    down = [name for name in fewer if ".lora.down." in name]
    assert down and all(torch.equal(first[name], fewer[name]) for name in fewer)
    assert not any(torch.equal(first[name], other[name]) for name in down)
    for name in down:
        bound = 1 / math.sqrt(first[name].shape[1])
        assert 0.5 * bound < float(first[name].abs().max()) <= bound


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_merged_and_adapted_predict_the_same_and_switched_off_the_base(alpha: float | None, tmp_path: Path) -> None:
    unet, base = disturbed(LoraSection(rank=3, alpha=alpha)), small_unet()
    adapted, plain = predict(unet), small_unet()
    assert (adapted - predict(base)).abs().max() > 0.01
    tensors = merged(unet, {})
    assert tensors.keys() == base.state_dict().keys()
    plain.load_state_dict(tensors)
    assert torch.allclose(predict(plain), adapted, atol=1e-5)
    with without_adapters(unet):
        assert torch.equal(predict(unet), predict(base))
    assert torch.equal(predict(unet), adapted)

    save_adapter(unet, {}, tmp_path)
    saved = load_file(tmp_path / ADAPTER_WEIGHTS)
    for layer in {name.removeprefix("unet.").partition(".lora.")[0] for name in saved}:
        up, down = (saved[f"unet.{layer}.lora.{which}.weight"] for which in ("up", "down"))
        assert torch.allclose(base.state_dict()[f"{layer}.weight"] + up @ down, tensors[f"{layer}.weight"], atol=1e-6)


def test_an_average_takes_the_place_of_the_weights() -> None:
    unet = disturbed(LoraSection(rank=2))
    nothing = {name: torch.zeros_like(value) for name, value in unet.named_parameters() if value.requires_grad}
    base = small_unet().state_dict()
    assert all(torch.equal(value, base[name]) for name, value in merged(unet, nothing).items())


def test_a_unet_without_adapters_has_no_adapter_file(tmp_path: Path) -> None:
    save_adapter(small_unet(), {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_adapter_and_checkpointing_changes_none(checkpointing: bool) -> None:
    gradients = []
    for on in (False, checkpointing):
        unet = disturbed(LoraSection(rank=2)).train()
        if on:
            unet.enable_gradient_checkpointing()
        unet(
            torch.ones(1, 4, 8, 8), torch.tensor([5]), torch.ones(1, 77, tiny.TEXT_WIDTH)
        ).sample.square().sum().backward()
        gradients.append([value.grad for value in unet.parameters() if value.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None and plain.abs().sum() > 0
        assert torch.equal(plain, again)


SD15 = unet_shapes({"cross_attention_dim": 768})


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        (
            {"rank": 321},
            "finetune.lora.rank",
            "321 is over the width of down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q, ",
        ),
        (
            {"rank": 4, "targets": ["to_x", "to_q", "Q"]},
            "finetune.lora.targets",
            "of the UNet is named to_x or Q;",
        ),
        ({"rank": 4, "targets": ["proj_in"]}, "finetune.lora.targets", "to_q, to_k, to_v, to_out.0"),  # a convolution
    ],
)
def test_what_does_not_fit_is_one_line(section: dict, key: str, said: str) -> None:
    assert SD15 is not None
    [problem] = misfits(SD15, LoraSection(**section))
    assert problem.key == key and said in problem.reason
    assert misfits(SD15, LoraSection(rank=320)) == []


def test_the_task_refuses_it_as_well() -> None:
    with pytest.raises(InputProblems, match="17 is over the width"):
        add_adapters(small_unet(), LoraSection(rank=17), KEY)


PEFT = """
import sys
import torch
from diffusers import StableDiffusionPipeline

base, adapter, latents = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(base)
pipeline.load_lora_weights(adapter)
assert pipeline.get_active_adapters()
generator = torch.Generator().manual_seed(1)
inputs = [torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 77, int(latents)))]
with torch.no_grad():
    predicted = pipeline.unet(inputs[0], torch.tensor([10, 900]), inputs[1]).sample
torch.save(predicted, adapter + "/predicted.pt")
"""


@pytest.mark.slow
def test_diffusers_loads_the_adapter_and_predicts_what_the_merged_model_does(tmp_path: Path) -> None:
    """With peft, which diffusers needs for it, in a folder of its own: medsyn's environment has none."""
    pin = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["peft"]
    extra = tmp_path / "extra"
    fetch = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(extra), *pin]
    if subprocess.run(fetch, cwd=ROOT, check=False, capture_output=True, timeout=120).returncode:
        pytest.skip("peft cannot be fetched here")
    base = tiny.build_random(tmp_path / "base")
    small_unet().save_pretrained(base / "unet")
    unet, plain = disturbed(LoraSection(rank=3, alpha=6.0)), small_unet()
    (tmp_path / "adapter").mkdir()
    save_adapter(unet, {}, tmp_path / "adapter")
    plain.load_state_dict(merged(unet, {}))
    command = [sys.executable, "-c", PEFT, str(base), str(tmp_path / "adapter"), str(tiny.TEXT_WIDTH)]
    environment = {**os.environ, "PYTHONPATH": str(extra), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=240)
    predicted = torch.load(tmp_path / "adapter" / "predicted.pt", weights_only=True)
    assert torch.allclose(predicted, predict(plain), atol=1e-5)
    assert not torch.allclose(predicted, predict(small_unet()), atol=1e-2)
