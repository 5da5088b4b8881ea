"""The moving average: what it holds, and that training does not wait for it."""

from __future__ import annotations

import threading

import pytest
import torch

from medsyn.training.finetune.average import MovingAverage

DECAY = 0.8


def weights_after(steps: int) -> torch.Tensor:
    return torch.tensor([1.0, -2.0]) * (steps + 1) ** 0.5


def averaged(every: int, steps: int, decay: float = DECAY) -> MovingAverage:
    weights = {"w": weights_after(0)}
    average = MovingAverage(weights, decay, every)
    for done in range(1, steps + 1):
        average.wait_for_copy()
        weights["w"].copy_(weights_after(done))
        average.update(done)
    return average


def by_hand(every: int, steps: int, decay: float = DECAY) -> torch.Tensor:
    average, left = weights_after(0), 1.0
    for done in range(1, steps + 1):
        left *= min(decay, done / (9 + done))
        if done % every == 0 or done == steps:
            average = left * average + (1 - left) * weights_after(done)
            left = 1.0
    return average


@pytest.mark.parametrize("every", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("steps", [0, 1, 5, 20, 60])
def test_an_update_decays_by_as_much_as_its_steps_together(every: int, steps: int) -> None:
    assert torch.allclose(averaged(every, steps).after(steps)["w"], by_hand(every, steps))


def test_rare_updates_follow_the_weights_as_closely_on_the_whole() -> None:
    often, rarely = (averaged(every, 60, 0.99).after(60)["w"] for every in (1, 10))
    moved = weights_after(60) - weights_after(0)
    assert (often - rarely).norm() < 0.1 * moved.norm()


def test_to_ask_for_it_part_way_changes_nothing() -> None:
    average = averaged(3, 7)
    before = average.values()["w"].clone()
    assert not torch.equal(average.after(7)["w"], before)
    assert torch.equal(average.values()["w"], before)


def test_training_goes_on_while_it_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, include = threading.Event(), MovingAverage._include

    def slowly(self: MovingAverage, *arguments: object) -> None:
        assert may_go_on.wait(30)
        include(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MovingAverage, "_include", slowly)
    weights = {"w": weights_after(0)}
    average = MovingAverage(weights, DECAY, 2)
    for done in (1, 2, 3):
        weights["w"].copy_(weights_after(done))
        average.update(done)
    may_go_on.set()
    assert torch.allclose(average.values()["w"], by_hand(2, 2)), "of the weights when it was due"


def test_what_goes_wrong_in_the_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(MovingAverage, "_include", full)
    average = averaged(2, 2)
    with pytest.raises(MemoryError):
        average.values()
