"""A local feature extractor: an image as one vector, without any download.

Compute nodes have no internet access and Inception's weights are not ours to ship, so the distances in the report are
measured on hand-made features: shape (histograms of oriented gradients at two scales), layout (a low-resolution
colour copy), brightness (histograms) and sharpness (the radial spectrum, which shows blur). They are comparable within
one report, but not with a published FID or KID. A learned extractor would replace only `describe` and `NAME`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage.feature import hog

NAME = "hand-made v1: HOG at 64 and 32 px, 12 px layout, histograms, radial spectrum"
_SIDE = 64
_COARSE = 32
_LAYOUT = 12
_BINS = 32
_RINGS = 16


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """`pixels` (uint8 [H, W, 3]) resized to uint8 [side, side, 3], antialiased."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def grey(pixels: np.ndarray) -> np.ndarray:
    """Brightness of uint8 [H, W, 3] as float32 [H, W] in 0..1 (the mean of the channels)."""
    return pixels.mean(axis=2, dtype=np.float32) / np.float32(255)


def _unit(block: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(block))
    return block / length if length > 0 else block


def _radial_spectrum(image: np.ndarray) -> np.ndarray:
    """Mean amplitude [_RINGS] of the Fourier transform of `image` [S, S], mean removed, on rings of equal width."""
    amplitude = np.abs(np.fft.rfft2(image - image.mean()))
    rows = np.fft.fftfreq(image.shape[0])[:, None]
    columns = np.fft.rfftfreq(image.shape[1])[None, :]
    ring = np.minimum((np.hypot(rows, columns) * 2 * _RINGS).astype(int), _RINGS - 1)
    total = np.bincount(ring.ravel(), amplitude.ravel(), minlength=_RINGS)
    return total / np.maximum(np.bincount(ring.ravel(), minlength=_RINGS), 1)


def describe(pixels: np.ndarray) -> np.ndarray:
    """The features of one image.

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        float32 [D]. Each of the five blocks has length one before a common factor makes the mean square of the
        vector 1, the scale that the polynomial kernel of KID, (x.y / D + 1)^3, expects.
    """
    small = shrink(pixels, _SIDE)
    image = grey(small)
    coarse = grey(shrink(pixels, _COARSE))
    layout = shrink(pixels, _LAYOUT).astype(np.float32).ravel() / 255 - 0.5
    histograms = [np.histogram(small[..., channel], bins=_BINS, range=(0, 256))[0] for channel in range(3)]
    blocks = [
        hog(image, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)),
        hog(coarse, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)),
        layout,
        np.sqrt(np.concatenate(histograms)),
        np.sqrt(_radial_spectrum(image)),
    ]
    vector = np.concatenate([_unit(block) for block in blocks])
    return (vector * np.sqrt(len(vector) / len(blocks))).astype(np.float32)
