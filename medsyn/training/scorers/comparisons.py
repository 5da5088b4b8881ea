"""Pairs of images of which one is known to be better: what a scorer learns from besides ratings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Comparisons:
    """M pairs out of a set of images; an image can be in many of them."""

    pixels: Tensor  # uint8 [images, 3, R, R]
    modality: np.ndarray  # str [images]
    group: np.ndarray  # str [images]: stays together when images are split (`medsyn.data.tables.split.groups`)
    better: np.ndarray  # int64 [M], into pixels
    worse: np.ndarray  # int64 [M], into pixels
    kind: np.ndarray  # str [M], what makes the worse one worse: "blur", "few-steps"
    severe: np.ndarray  # bool [M]: so much worse that any expert would call it poor
    weight: np.ndarray  # float32 [M], mean 1
