from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic


@pytest.fixture
def system() -> SyntheticSystem:
    return load_synthetic("embedded", torch.device("cpu"))


def run(way: str, system: SyntheticSystem, tmp_path: Path, **section: Any) -> Any:
    from finetuning import ways
    from finetuning.meter import Meter

    meter = Meter(torch.device("cpu"), time.perf_counter)
    table = ways.write_images(tmp_path, 4, 32)
    config = ways.settings(table, 32, 3, train_batch_size=2, gradient_accumulation_steps=2, **section)
    if way == "a":
        ways.diffusers(config, system, meter, 1)
    else:
        assert ways.medsyn(config, system, tmp_path / "run", meter, 1) > 0
    return meter


@pytest.mark.parametrize(("way", "section"), [("a", {}), ("b", {}), ("c", {"lora": {"rank": 2}})])
def test_every_way_trains_and_its_time_is_told_apart(
    way: str, section: dict, system: SyntheticSystem, tmp_path: Path
) -> None:
    calls = {"vae": 0, "text_encoder": 0, "unet": 0}
    for name in calls:
        module = getattr(system, name) if name != "vae" else system.vae.encoder
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    before = {name: value.clone() for name, value in system.unet.named_parameters()}
    meter = run(way, system, tmp_path, **section)
    assert meter.steps == 2, "after one to warm up"
    assert 0 < meter.parts["optimizer"] < meter.parts["unet"] < meter.seconds
    assert sum(meter.parts.values()) < meter.seconds
    after = {name: value for name, value in system.unet.named_parameters() if name in before}
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert bool(changed) == (way != "c"), "adapters leave the UNet's own weights alone"
    assert calls["unet"] == 6
    if way == "a":
        assert calls["vae"] == calls["text_encoder"] == 6, "in every forward pass"
    else:
        assert (calls["vae"], calls["text_encoder"]) == (4, 5), "once an image, once a caption"


def test_ratios_are_taken_within_a_round() -> None:
    import finetune

    speeds = [{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 15.0}]
    rounds = [{way: {"samples_per_second": value} for way, value in found.items()} for found in speeds]
    assert finetune.ratios(rounds, "b") == [2.0, 1.5]
    assert finetune.ratios([{"b": {"samples_per_second": 1.0}}], "b") == []


def test_the_peak_is_forgotten_and_grows_again() -> None:
    from finetuning.meter import peak_bytes, reset_peak

    cpu = torch.device("cpu")
    torch.ones(100 << 18).sum()
    reset_peak(cpu)
    before = peak_bytes(cpu)
    held = torch.ones(100 << 18)
    assert 80 << 20 < peak_bytes(cpu) - before < 150 << 20
    del held
