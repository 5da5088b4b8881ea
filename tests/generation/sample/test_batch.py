"""A batch is begun without waiting for the device; one that several blocks share is dealt to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medsyn.generation.block_store import Item
from medsyn.generation.filter import Candidate
from medsyn.generation.sample.batch import STEPS_AHEAD, Batch, ImageSampler, Recipe
from medsyn.models import sampler, stable_diffusion
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.schedulers import FAST, NOTHING_LEFT_OUT, SOLVERS, SchedulerName, Shortcuts

WANTED = [(Item("a", "CT: normal", 0), 0)]
RECIPE = Recipe("CT", 0, 64, 64, "dpm", 5, 3.0, 2)
WITHOUT_NOISE: list[SchedulerName] = [
    name for name, solver in SOLVERS.items() if not solver.stochastic and name != "euler"
]  # Euler's step in diffusers draws noise that it does not use


def test_the_parts_of_a_batch_add_up_to_it() -> None:
    candidates = [Candidate(attempt, attempt) for attempt in range(7)]
    whole = Batch(candidates, [], 100, 7.0, "gpu")
    parts = Batch(candidates, list(range(7)), 100, 7.0, "gpu").split("aabacca")  # type: ignore[arg-type]
    assert [[candidate.attempt for candidate in part.candidates] for part in parts] == [[0, 1, 3, 6], [2], [4, 5]]
    assert [part.pictures for part in parts] == [[0, 1, 3, 6], [2], [4, 5]]
    assert sum(part.unet_evaluations for part in parts) == whole.unet_evaluations
    assert [part.seconds for part in parts] == pytest.approx([4.0, 1.0, 2.0])
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert {part.device for part in parts} == {"gpu"}


class Copies(TorchDispatchMode):
    """Counts the copies between devices that are waited for."""

    waited = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(func).startswith("aten._to_copy"):
            target = kwargs.get("device")
            moved = target is not None and torch.device(target).type != args[0].device.type
            self.waited += moved and not kwargs.get("non_blocking", False)
        elif str(func).startswith("aten.copy_"):
            self.waited += args[0].device.type != args[1].device.type
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def elsewhere() -> SyntheticSystem:
    """The embedded model on a device that has no numbers: whoever asks for one fails, as on a GPU he would wait."""
    system = load_synthetic("embedded", torch.device("cpu"))
    system.device = torch.device("meta")
    for network in (system.unet, system.vae, system.text_encoder):
        network.to(system.device)
    return system


@pytest.mark.parametrize("shortcuts", [NOTHING_LEFT_OUT, FAST])
@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_nobody_waits_for_the_device_while_a_batch_is_begun(
    elsewhere: SyntheticSystem, monkeypatch: pytest.MonkeyPatch, name: SchedulerName, shortcuts: Shortcuts
) -> None:
    for module in (sampler, stable_diffusion):
        monkeypatch.setattr(module, "sent", lambda values, device: values.to(device, non_blocking=True))
    elsewhere.forget_prompts()
    recipe = replace(RECIPE, scheduler=name, shortcuts=shortcuts)
    with Copies() as copies:
        begun = ImageSampler(recipe, elsewhere).begin(WANTED)
    assert copies.waited == 0
    with pytest.raises(NotImplementedError, match="Meta"):
        begun.finish()


@pytest.mark.parametrize("steps", [1, STEPS_AHEAD, 5])
def test_what_is_to_be_done_meanwhile_is_done_after_the_first_steps(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    told: list[str] = []

    def run(self: sampler.Run, after_step: Callable[[int], None]) -> tuple[torch.Tensor, int]:
        for index in range(steps):
            told.append(f"step {index}")
            after_step(index)
        return torch.zeros(2, 4, 8, 8), steps

    monkeypatch.setattr(sampler.Run, "begin", run)
    ImageSampler(RECIPE, load_synthetic("embedded", torch.device("cpu"))).begin(WANTED, lambda: told.append("this"))
    expected = [f"step {index}" for index in range(steps)]
    if steps >= STEPS_AHEAD:
        expected.insert(STEPS_AHEAD, "this")
    assert told == expected
