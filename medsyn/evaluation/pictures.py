"""One image as evaluation keeps it: small, with its features, so that thousands fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsyn.evaluation.features import describe, shrink

PICTURE_SIDE = 128  # most pixels a side that are kept of an image


@dataclass(frozen=True)
class Picture:
    """One image, about 27 kB if it is grey."""

    modality: str
    text: str
    stored: np.ndarray  # uint8 [S, S, 1 or 3], S at most PICTURE_SIDE; one channel if all three are equal
    features: np.ndarray  # float32 [D]

    @property
    def pixels(self) -> np.ndarray:
        """Uint8 [S, S, 3]."""
        return np.broadcast_to(self.stored, (*self.stored.shape[:2], 3)).copy()


def picture(pixels: np.ndarray, modality: str, text: str) -> Picture:
    """The picture of uint8 [H, W, 3]."""
    small = shrink(pixels, min(PICTURE_SIDE, pixels.shape[0]))
    is_grey = bool((small == small[..., :1]).all())
    return Picture(modality, text, (small[..., :1] if is_grey else small).copy(), describe(pixels))
