"""Seconds inside the UNet and the optimizer, and the peak of the memory, while a training loop runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Meter:
    """What a loop spends; a GPU is waited for at both ends of a part, which costs a little."""

    device: torch.device
    clock: Callable[[], float]
    parts: dict[str, float] = field(default_factory=lambda: {"unet": 0.0, "optimizer": 0.0})
    steps: int = 0
    seconds: float = 0.0
    _started: float = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def start(self) -> None:
        """From here on everything counts."""
        self.parts = dict.fromkeys(self.parts, 0.0)
        reset_peak(self.device)
        self.steps, self._started = 0, self._now()

    def step_done(self) -> None:
        """One optimizer step is over."""
        self.steps, self.seconds = self.steps + 1, self._now() - self._started

    def _counted(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            began = self._now()
            try:
                return function(*arguments, **keywords)
            finally:
                self.parts[part] += self._now() - began

        return wrapped

    @contextmanager
    def watching(self, unet: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Count forward and backward passes as the UNet's, clipping and updates as the optimizer's."""
        with (
            mock.patch.object(unet, "forward", self._counted("unet", unet.forward)),
            mock.patch.object(Tensor, "backward", self._counted("unet", Tensor.backward)),
            mock.patch.object(optimizer, "step", self._counted("optimizer", optimizer.step)),
            mock.patch.object(nn.utils, "clip_grad_norm_", self._counted("optimizer", nn.utils.clip_grad_norm_)),
        ):
            yield


def prime(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer allocate its state, so that a single step can be measured."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM becomes VmRSS


def peak_bytes(device: torch.device) -> int:
    """The peak since `reset_peak`: of the GPU's memory, or of this process' resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
