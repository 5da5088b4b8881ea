"""Pictures on their way from the device that decoded them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class HostCopy:
    """Pictures on their way from the device: nobody waits for them before they are asked for."""

    def __init__(self, pictures: Tensor) -> None:
        """Begin the copy.

        Args:
            pictures: uint8 [N, H, W, channels].
        """
        self._copied: torch.cuda.Event | None = None
        if pictures.device.type != "cuda":
            self._host = pictures.contiguous()
            return
        self._host = torch.empty(pictures.shape, dtype=pictures.dtype, pin_memory=True)
        self._host.copy_(pictures, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(pictures.device))

    def pictures(self) -> list[np.ndarray]:
        """Each picture as an array of its own; waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return [picture.copy() for picture in self._host.numpy()]
