"""Pictures whose rating shows: the more noise, the worse."""

from __future__ import annotations

import numpy as np


def picture(number: int, rating: int) -> np.ndarray:
    """A blob on grey, uint8 [32, 32]: rated 3 as it is, 2 with a little noise, 1 with a lot."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:32, :32]
    cy, cx = rng.uniform(8, 24, 2)
    clean = 90 + 100 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / rng.uniform(20, 60))
    return (clean + rng.normal(size=(32, 32)) * {3: 1, 2: 4, 1: 25}[rating]).clip(0, 255).astype(np.uint8)
