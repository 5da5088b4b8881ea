"""The moving average of the weights, on the host: a second UNet does not fit on 12 GB."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class MovingAverage:
    """An exponential moving average of named weights, updated every few steps by a thread while training goes on.

    Copying to the host may last until the weights change next; the rest has the time until the next update. What it
    holds depends on the number of steps alone.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float, every: int = 1) -> None:
        """Begin with the weights as they are; `decay` is that of one step, and `every` is the steps of an update."""
        self._weights, self._decay, self._every = weights, decay, every
        self._values = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
        on_gpu = any(value.is_cuda for value in weights.values())
        self._copies = {name: torch.empty_like(value, pin_memory=on_gpu) for name, value in self._values.items()}
        self._stream = torch.cuda.Stream() if on_gpu else None
        self._copied: torch.cuda.Event | None = None
        self._pool = ThreadPoolExecutor(1, "average")
        self._running: Future[None] | None = None

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Include the weights as they are after `done` steps, if an update is due; returns before that has happened."""
        if done % self._every:
            return
        self.values()  # the copies are in use until the last update has ended
        copied = self._copied = self._copy()
        self._running = self._pool.submit(self._include, copied, self._retained(done - self._every, done))

    def wait_for_copy(self) -> None:
        """Let the device change the weights only when they have been copied; call it before an optimizer's step."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None

    def values(self) -> dict[str, Tensor]:
        """The average as of the last update, which is waited for."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
        return self._values

    @torch.no_grad()
    def after(self, done: int) -> dict[str, Tensor]:
        """The average after `done` steps, with those since the last update; changes nothing."""
        left = done % self._every
        if left == 0:
            return self.values()
        weight = 1 - self._retained(done - left, done)
        return {name: value.lerp(self._weights[name].detach().cpu(), weight) for name, value in self.values().items()}

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        for name, value in self.values().items():
            value.copy_(values[name])

    def _retained(self, begin: int, end: int) -> float:
        """How much of the average the steps `begin` to `end` leave; the decay rises at first, to forget the start."""
        return math.prod(min(self._decay, (1 + step) / (10 + step)) for step in range(begin, end))

    def _copy(self) -> torch.cuda.Event | None:
        """Copy the weights to the host; an event says when that has happened."""
        if self._stream is None:
            for name, copy in self._copies.items():
                copy.copy_(self._weights[name].detach())
            return None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, copy in self._copies.items():
                copy.copy_(self._weights[name].detach(), non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return copied

    @torch.no_grad()
    def _include(self, copied: torch.cuda.Event | None, retained: float) -> None:
        if copied is not None:
            copied.synchronize()
        for name, value in self._values.items():
            value.lerp_(self._copies[name], 1 - retained)
