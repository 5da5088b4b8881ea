"""From a picture of any shape to the square that the models take, without distorting or cropping anatomy."""

from __future__ import annotations

import numpy as np

from medsyn.data.pixels import resize


def fit_square(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """The whole picture, centred on a square of its background, resized with antialiasing.

    An OCT scan is about 512 x 190: squeezed into a square, a healthy retina looks swollen. The bars beside the picture
    are, per channel, as dark as the darkest twentieth of the two edges that they continue: black beside black, white
    beside white, and dark where anatomy reaches the edge (its median would put grey bars beside most chest X-rays).
    Nothing is cropped and nothing is flipped (captions say left and right).

    Args:
        pixels: float32 [H, W, C] in 0..1, C 1 or 3.
        resolution: R, the side of the result.

    Returns:
        float32 [R, R, 3] in 0..1; grey is repeated.
    """
    height, width = pixels.shape[:2]
    scale = resolution / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    edges = pixels[[0, -1]] if height < width else pixels[:, [0, -1]]
    background = np.percentile(edges, 5, axis=(0, 1)).astype(np.float32)
    square = np.empty((resolution, resolution, 3), dtype=np.float32)
    square[:] = background
    top, left = (resolution - rows) // 2, (resolution - columns) // 2
    square[top : top + rows, left : left + columns] = resize(pixels, rows, columns)
    return square
