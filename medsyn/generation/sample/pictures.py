"""Pictures on their way from the device that decoded them."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def to_host(pictures: Tensor) -> list[np.ndarray]:
    """Each of the pictures uint8 [N, H, W, channels] as an array of its own; waits for the device."""
    return [picture.copy() for picture in pictures.contiguous().cpu().numpy()]
