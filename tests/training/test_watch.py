from __future__ import annotations

import math

import torch

from medsyn.training.finetune.watch import LossWatch


class OnGpu:
    """Waited for."""

    def __init__(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


def pending(watch: LossWatch, step: int, loss: float) -> OnGpu:
    event = OnGpu()
    watch._pending.append((step, torch.tensor([loss, 1.0]), event))  # type: ignore[arg-type]
    return event


def test_a_gpu_has_the_next_step_before_a_loss_is_waited_for() -> None:
    watch = LossWatch()
    first = pending(watch, 0, 1.0)
    assert watch.first_bad() is None and first.waited == 0
    second = pending(watch, 1, math.nan)
    assert watch.first_bad() is None and (first.waited, second.waited) == (1, 0)
    bad = watch.first_bad(all_steps=True)
    assert bad is not None and bad[0] == 1 and second.waited == 1


def test_a_cpu_tells_at_once_and_the_first_comes_first() -> None:
    watch = LossWatch()
    watch.note(0, torch.tensor([1.0, 1.0]))
    assert watch.first_bad() is None
    watch.note(1, torch.tensor([1.0, math.inf]))
    watch.note(2, torch.tensor([math.nan, 1.0]))
    assert watch.first_bad() == (1, [1.0, math.inf])
