"""A loss that is not finite is noticed at once, and no step waits for the device because of it."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class LossWatch:
    """Reads losses of a GPU one step later, so that it has work meanwhile; a CPU's at once."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def note(self, step: int, losses: Tensor) -> None:
        """Remember the losses of a step [n], which may still have to be computed."""
        copy = torch.empty(losses.shape, pin_memory=losses.is_cuda)
        copy.copy_(losses, non_blocking=True)
        event = None
        if losses.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, copy, event))

    def first_bad(self, all_steps: bool = False) -> tuple[int, list[float]] | None:
        """The first step with a loss that is not finite, and its losses; the last step counts with `all_steps` only.

        Always waits for the same steps, so that all ranks of a team notice at the same one.
        """
        while self._pending and (all_steps or len(self._pending) > 1 or self._pending[0][2] is None):
            step, losses, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            if not bool(torch.isfinite(losses).all()):
                return step, losses.tolist()
        return None
