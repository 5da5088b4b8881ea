from __future__ import annotations

import numpy as np
import pytest
import torch

from medsyn.generation.sample.pictures import to_host
from medsyn.generation.write.png import quantise
from medsyn.models.pictures import quantise_all


@pytest.mark.parametrize("modality", ["CT", "Brain MRI", "Fundus"])
def test_pictures_are_quantised_as_each_is_alone(modality: str) -> None:
    """Halves, which are rounded to even, the ends, and numbers whose sum of three depends on the order."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(5, 3, 64, 48, generator=generator) * 1.2 - 0.1
    pixels[0, :, :, 0] = (torch.arange(64) + 0.5) / 255
    pixels[1, 0] = 1e-7
    found = quantise_all(pixels, modality)
    expected = [quantise(one, modality) for one in pixels.permute(0, 2, 3, 1).numpy()]
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.stack(expected))


def test_every_picture_is_an_array_of_its_own() -> None:
    pictures = torch.randint(0, 256, (3, 4, 4, 1), dtype=torch.uint8)
    copied = to_host(pictures)
    assert np.array_equal(np.stack(copied), pictures.numpy())
    assert all(one.base is None and one.flags.c_contiguous for one in copied), "one that is kept keeps no batch"
