"""Phantoms of one kind, each of a patient of its own, as small pictures."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.data.images.pixels import fit_square
from medsyn.data.phantoms.phantom import draw_phantom, render
from medsyn.evaluation.memorization.search import Library, Picture

COUNT = 9


def draw(kind: str, index: int) -> np.ndarray:
    """A phantom, uint8 [64, 64]."""
    square = fit_square(render(draw_phantom(kind, index, 5), 128), 64)
    return np.rint(square.mean(axis=2) * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    """OCT scans."""
    return [Picture(f"{index}.png", "OCT", draw("OCT", index), f"patient {index}") for index in range(COUNT)]


@pytest.fixture(scope="session")
def library(pictures: list[Picture]) -> Library:
    """Of all of them."""
    return Library(pictures)
