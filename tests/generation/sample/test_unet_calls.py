"""Calls of a UNet that leave out a part of it: what they give, and that they leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from medsyn.models import weights
from medsyn.models.device import cpu_has_bfloat16
from medsyn.models.sampler import Guidance, build_scheduler, initial_noise, sample
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.models.unet_calls import UNetCalls, outermost
from medsyn.schedulers import FAST, Call, Shortcuts

SEEDS, SHAPE = [11, 22, 33, 44], (4, 8, 8)
ALL = Shortcuts((0.2, 0.9), 2, 0.6)
ENDS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SHAPES: dict[
    str, dict[str, Any]
] = {  # of UNets, smaller: Stable Diffusion v1.5's blocks, SD 2's attention, and outer layers without attention
    "sd15": {"block_out_channels": (16, 16), "attention_head_dim": 2, **ENDS},
    "sd2": {"block_out_channels": (16, 16), "attention_head_dim": (2, 4), "use_linear_projection": True, **ENDS},
    "embedded": {
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


@pytest.fixture(scope="module", params=SHAPES)
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = UNet2DConditionModel(sample_size=8, cross_attention_dim=8, norm_num_groups=4, **SHAPES[request.param])
        for module in made.modules():  # untrained layers say nearly the same of every text
            if isinstance(module, nn.Linear):
                module.weight.data *= 3
    return made.eval().requires_grad_(False)


def inputs(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(rows, *SHAPE, generator=generator),
        torch.tensor(400),
        torch.randn(rows, 77, 8, generator=generator),
    )


def denoise(
    unet: UNet2DConditionModel,
    shortcuts: Shortcuts,
    seeds: list[int] = SEEDS,
    scale: float = 3.0,
    solver: str = "dpm",
    steps: int = 5,
) -> Tensor:
    """Latents of prompts that are functions of the seeds."""
    hidden = torch.stack([torch.randn(77, 8, generator=torch.Generator().manual_seed(one)) for one in seeds])
    guidance = Guidance(torch.full((len(seeds),), scale), torch.zeros(1, 77, 8), shortcuts)
    scheduler = build_scheduler(solver, {"num_train_timesteps": 1000}, steps)  # type: ignore[arg-type]
    return sample(unet, scheduler, hidden, guidance, initial_noise(seeds, SHAPE), seeds)[0]


@pytest.fixture(autouse=True)
def leaves_no_trace(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "unet" in request.fixturenames:
        made = request.getfixturevalue("unet")
        assert not [one for one in made.modules() if one._forward_hooks or one._forward_pre_hooks]
        assert not [one for one in made.modules() if "forward" in vars(one)]


def test_the_outermost_layers_with_features_of_the_same_call_are_the_whole_unet(unet: UNet2DConditionModel) -> None:
    rows, timestep, hidden = inputs()
    calls = UNetCalls(unet, [Call(False), Call(False, deep=False)])
    whole = calls(0, rows, timestep, hidden)
    assert torch.allclose(whole, unet(rows, timestep, encoder_hidden_states=hidden).sample, atol=1e-4)  # rounding
    assert torch.equal(whole, calls(1, rows, timestep, hidden))


def test_the_outermost_layers_see_the_latents_the_time_and_the_features(unet: UNet2DConditionModel) -> None:
    rows, timestep, hidden = inputs()
    features = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    given = outermost(unet, rows, timestep, hidden, features)
    assert not torch.allclose(given, outermost(unet, rows + 1, timestep, hidden, features), atol=1e-3)
    assert not torch.allclose(given, outermost(unet, rows, timestep - 300, hidden, features), atol=1e-3)
    assert not torch.allclose(given, outermost(unet, rows, timestep, hidden, features + 1), atol=1e-3)


def test_frozen_attention_to_the_same_text_changes_nothing(unet: UNet2DConditionModel) -> None:
    """What a call computed is what the next one with the same inputs computes, and another text has no effect."""
    rows, timestep, hidden = inputs()
    calls = UNetCalls(unet, [Call(False), Call(False, text_frozen=True)])
    whole = calls(0, rows, timestep, hidden)
    assert torch.equal(whole, calls(1, rows, timestep, hidden))
    assert torch.equal(whole, calls(1, rows, timestep, hidden + 1))
    assert not torch.equal(whole, unet(rows, timestep, encoder_hidden_states=hidden + 1).sample)


def test_attention_is_frozen_at_the_mean_of_both_halves(unet: UNet2DConditionModel) -> None:
    rows, timestep, hidden = inputs()
    layers = [module for name, module in unet.named_modules() if name.endswith(".attn2")]
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, made: seen.append(made)) for layer in layers]
    calls = UNetCalls(unet, [Call(True), Call(False, text_frozen=True)])
    calls(0, rows, timestep, hidden)
    halves, seen[:] = list(seen), []
    calls(1, rows[:1], timestep, hidden[:1])
    for hook in hooks:
        hook.remove()
    assert len(layers) == len(seen) == len(halves)
    assert all(
        torch.allclose((both[:1] + both[1:]) / 2, one, atol=1e-6) for both, one in zip(halves, seen, strict=True)
    )


def test_nothing_left_out_is_the_plain_loop(unet: UNet2DConditionModel) -> None:
    scheduler = build_scheduler("dpm", {"num_train_timesteps": 1000}, 4)
    latents = initial_noise(SEEDS, SHAPE)
    hidden = torch.stack([torch.randn(77, 8, generator=torch.Generator().manual_seed(one)) for one in SEEDS])
    for timestep in scheduler.timesteps:
        context = torch.cat([torch.zeros_like(hidden), hidden])
        away, towards = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=context).sample.chunk(2)
        latents = scheduler.step(away + 3.0 * (towards - away), timestep, latents).prev_sample
    assert (denoise(unet, Shortcuts(), steps=4) - latents).abs().max() < 1e-4 * latents.abs().max()


@pytest.mark.parametrize("shortcuts", [Shortcuts(deep_cache_every=3), Shortcuts(text_attention_until=0.5), ALL])
@pytest.mark.parametrize("solver", ["dpm", "euler_a"])
def test_companions_and_position_change_no_bit(unet: UNet2DConditionModel, shortcuts: Shortcuts, solver: str) -> None:
    first = denoise(unet, shortcuts, solver=solver)
    assert torch.equal(first.flip(0), denoise(unet, shortcuts, SEEDS[::-1], solver=solver))
    mixed = denoise(unet, shortcuts, [7, SEEDS[1], SEEDS[1], 8], solver=solver)
    assert torch.equal(mixed[1], first[1]) and torch.equal(mixed[2], first[1])
    assert not torch.equal(first, denoise(unet, Shortcuts(), solver=solver)), "it leaves something out"


def test_without_guidance_the_shortcuts_work_as_well(unet: UNet2DConditionModel) -> None:
    first = denoise(unet, ALL, scale=1.0)
    assert first.isfinite().all() and torch.equal(first, denoise(unet, ALL, scale=1.0))


def test_an_error_leaves_the_unet_as_it_was(unet: UNet2DConditionModel) -> None:
    rows, timestep, hidden = inputs()
    calls = UNetCalls(unet, [Call(False), Call(False, text_frozen=True)])
    with pytest.raises(RuntimeError):
        calls(0, rows, timestep, hidden[:, :, :3])
    calls(0, rows, timestep, hidden)
    with pytest.raises(RuntimeError):
        calls(1, rows[:, :3], timestep, hidden)


@pytest.fixture(scope="module")
def embedded() -> SyntheticSystem:
    return load_synthetic(str(weights.embedded_directory()), torch.device("cpu"))


@pytest.mark.parametrize("rows", [3, 4, 8])
@pytest.mark.parametrize(("guided", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)])
def test_the_place_in_a_batch_changes_no_bit_of_the_embedded_model(
    embedded: SyntheticSystem, rows: int, guided: bool, dtype: torch.dtype
) -> None:
    """On CPUs with AVX-512 the embedded time of equal rows differed in batches of 3 to 8."""
    if dtype == torch.bfloat16 and not cpu_has_bfloat16():
        pytest.skip("this CPU does not compute in bfloat16, so medsyn does not on it")
    latents = initial_noise(range(rows), embedded.latent_shape(64)).to(dtype)
    hidden = torch.randn(rows, 77, 64).to(dtype)
    embedded = replace(embedded, unet=copy.deepcopy(embedded.unet).to(dtype))
    calls, timestep = UNetCalls(embedded.unet, [Call(guided)]), torch.tensor(400)
    both = 2 if guided else 1
    first, other = (
        calls(0, torch.cat([one] * both), timestep, torch.cat([text] * both))
        for one, text in ((latents, hidden), (latents.flip(0), hidden.flip(0)))
    )
    for half, again in zip(first.chunk(both), other.chunk(both), strict=True):
        assert torch.equal(half, again.flip(0))


def test_fast_images_of_the_embedded_model_are_close_to_the_others(embedded: SyntheticSystem) -> None:
    hidden = torch.stack([embedded.embed(text)[0] for text in ("CT: nodule, left", "MRI: tumour, right")])
    negative, shape = embedded.embed("")[0][None], embedded.latent_shape(64)

    def decoded(shortcuts: Shortcuts) -> Tensor:
        scheduler = build_scheduler("dpm", embedded.scheduler_config, 15)
        guidance = Guidance(torch.full((2,), 3.0), negative, shortcuts)
        return embedded.decode(
            sample(embedded.unet, scheduler, hidden, guidance, initial_noise([1, 2], shape), [1, 2])[0]
        )

    whole, fast = decoded(Shortcuts()), decoded(FAST)
    assert (whole - fast).abs().mean() < 0.05
    assert not torch.equal(whole, fast)
