"""Pairs that the generator makes itself. The embedded model at 32 px and a few steps: what is tested is the order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsyn import config as configuration
from medsyn.config import Config
from medsyn.data.degradations.graded import amount
from medsyn.data.images.latent_cache import TensorCache
from medsyn.models.sampler import build_scheduler
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.stage import Control, Saved
from medsyn.training.scorers import sampled
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.ways import WAYS, Resampled, Spoilt, Stopped, noisy_weights, wrong_timesteps

TEXTS = ["CT: a mass", "CT: normal", "CT: a nodule", "CT: an effusion"]


@functools.cache
def generator() -> SyntheticSystem:
    return load_synthetic("embedded", torch.device("cpu"))


def config(**generation: Any) -> Config:
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0, "batch_size": 3, **generation}
    return configuration.validate({"data": {"resolution": 32}, "generation": settings}, "test")


def compare(
    cache: Path, count: int = 4, ways: Sequence[str] = tuple(WAYS), control: Control | None = None, **generation: Any
) -> Comparisons:
    return sampled.sampled_comparisons(
        config(**generation), "CT", TEXTS, count, "w", generator, TensorCache(cache), control or Control(), ways
    )


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparisons]:
    cache = tmp_path_factory.mktemp("sampled")
    return cache, all_pairs(cache)


def all_pairs(cache: Path, **options: Any) -> Comparisons:
    """However little they differ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "LEAST_CHANGE", 0.0)
        return compare(cache, **options)


def test_what_hardly_differs_from_the_good_image_is_no_pair(everything: tuple[Path, Comparisons]) -> None:
    cache, whole = everything
    found = compare(cache)
    assert 0 < len(found.better) < len(whole.better)
    assert torch.equal(found.pixels[:4], whole.pixels[:4])
    pairs = zip(found.pixels[found.better] / 255, found.pixels[found.worse] / 255, strict=True)
    assert min(amount(good, bad) for good, bad in pairs) >= sampled.LEAST_CHANGE


def test_prompts_are_drawn_evenly_whatever_their_order() -> None:
    chosen = sampled.choose_subjects(TEXTS, 7, 0, "CT")
    assert chosen == sampled.choose_subjects([*TEXTS[::-1], TEXTS[0]], 7, 0, "CT")
    assert sorted(subject.replicate for subject in chosen) == [0, 0, 0, 0, 1, 1, 1]
    assert len({subject.image for subject in chosen}) == 7
    assert chosen != sampled.choose_subjects(TEXTS, 7, 1, "CT")
    assert sampled.choose_subjects([], 7, 0, "CT") == []


def test_what_asks_for_poor_images_is_no_example_of_good_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def batches(plan: object, subjects: list[sampled.Subject], ways: list[str]) -> list[object]:
        asked.extend(subject.prompt for subject in subjects)
        return []

    monkeypatch.setattr(sampled._Plan, "batches", batches)
    texts = [f"CT: {what} image quality" for what in ("a mass, poor", "a mass, excellent", "normal, acceptable")]
    sampled.sampled_comparisons(config(), "CT", texts, 4, "w", generator, TensorCache(tmp_path), Control())
    assert set(asked) == {f"CT: {what}, excellent image quality" for what in ("a mass", "normal")}


def test_every_way_makes_pairs_with_the_good_image_of_its_prompt(everything: tuple[Path, Comparisons]) -> None:
    found = everything[1]
    for name, way in WAYS.items():
        every = way.every if isinstance(way, Resampled) else 1
        assert (found.kind == name).sum() in {4 // every, -(-4 // every)}, name
    assert (found.group[found.better] == found.group[found.worse]).all()
    assert set(found.better.tolist()) == {0, 1, 2, 3}
    assert len({*found.better, *found.worse}) == len(found.pixels)
    assert found.pixels.dtype == torch.uint8
    assert found.pixels.shape[1:] == (3, 32, 32)
    different = (found.pixels[found.better] != found.pixels[found.worse]).flatten(1).any(dim=1)
    assert different.all(), set(found.kind[~different.numpy()])
    assert (found.severe == [WAYS[kind].severe for kind in found.kind]).all()
    assert (found.weight == 1).all()


def test_what_is_in_the_cache_needs_no_generator(
    everything: tuple[Path, Comparisons], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, first = everything
    monkeypatch.setitem(globals(), "load_synthetic", None)
    generator.cache_clear()
    again = all_pairs(cache)
    assert torch.equal(again.pixels, first.pixels)
    assert (again.kind == first.kind).all()


def test_killed_and_run_again_it_ends_with_the_same_bits(everything: tuple[Path, Comparisons], tmp_path: Path) -> None:
    ways, control = ["two steps", "stitched", "stopped early"], Control()
    control.request_stop()
    for _ in range(3):  # one batch each
        with pytest.raises(Saved):
            compare(tmp_path, ways=ways, control=control)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    again = all_pairs(tmp_path, ways=ways)
    for name in ways:
        assert torch.equal(bad(again, name), bad(everything[1], name)), name


def test_an_image_does_not_depend_on_the_other_ways(everything: tuple[Path, Comparisons], tmp_path: Path) -> None:
    chosen = ["too much guidance", "noisy weights"]
    alone = all_pairs(tmp_path, ways=chosen)
    for name in chosen:
        assert torch.equal(bad(alone, name), bad(everything[1], name)), name


def bad(found: Comparisons, name: str) -> torch.Tensor:
    return found.pixels[found.worse[found.kind == name]]


def test_without_guidance_or_a_second_image_there_is_nothing_to_leave_out_or_to_stitch(tmp_path: Path) -> None:
    found = all_pairs(tmp_path, count=1, ways=["no guidance", "stitched", "two steps"], guidance_scale=1.0)
    assert found.kind.tolist() == ["two steps"]


def test_no_images_are_no_pairs(tmp_path: Path) -> None:
    found = compare(tmp_path, count=0)
    assert found.pixels.shape == (0, 3, 32, 32)
    assert len(found.better) == 0


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if isinstance(way, Spoilt)])
def test_spoilt_latents_are_others_and_a_function_of_the_seed(name: str) -> None:
    way = WAYS[name]
    assert isinstance(way, Spoilt)
    drawn = torch.Generator().manual_seed(0)
    latents, other = torch.randn(2, 4, 8, 8, generator=drawn)
    kept = latents.clone()
    first, second = (way.change(latents, other, way.weakest, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(latents, kept)
    assert first.shape == latents.shape
    assert first.isfinite().all()
    assert (first - latents).std() > 0.1


def test_the_unet_is_as_it_was_after_it_was_spoilt() -> None:
    unet = generator().unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    with noisy_weights(unet, 0.2, 1):
        assert not all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    with wrong_timesteps(unet, 0.5, 1):
        assert len(unet._forward_pre_hooks) == 1
    assert not unet._forward_pre_hooks


@pytest.mark.parametrize("scheduler", ["dpm", "euler", "pndm", "heun"])
def test_the_states_of_a_run_are_in_the_scale_of_the_unet(scheduler: Any) -> None:
    """Some schedulers' latents are as large as their noise, up to 15 times the image's."""
    states: list[torch.Tensor] = []
    watched = sampled._watched(build_scheduler(scheduler, generator().scheduler_config, 6), states)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * watched.init_noise_sigma
    for timestep in watched.timesteps:
        watched.scale_model_input(latents, timestep)
        latents = watched.step(torch.zeros_like(latents), timestep, latents).prev_sample
    assert len(states) == len(watched.timesteps)
    assert max(state.std() for state in states[:-1]) < 1.5


def test_exactly_one_way_stops_early() -> None:
    assert sum(isinstance(way, Stopped) for way in WAYS.values()) == 1
