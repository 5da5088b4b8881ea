"""Versions of images: small, the same every time, and measured as they are shown."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from medsyn.models.image_encoder import ImageEncoder
from medsyn.training.scorers.measured import VERSIONS, MeasuredImages, augment
from tests.training.scorers.rated_sets import KEY, SECTION, rated_set

CPU = torch.device("cpu")


def test_versions_are_functions_of_key_number_and_group() -> None:
    pixels, groups = rated_set().pixels.float() / 255, [str(number) for number in range(10)]
    whole = augment(pixels, KEY, 3, groups)
    assert torch.equal(whole[4:7], augment(pixels[4:7], KEY, 3, groups[4:7]))
    assert not torch.equal(whole, augment(pixels, KEY, 2, groups))
    assert not torch.equal(whole, augment(pixels, (1, "test"), 3, groups))
    assert torch.equal(augment(pixels, KEY, 0, groups), pixels)


def test_a_damaged_copy_changes_as_its_original_does() -> None:
    pixel = torch.full((1, 3, 32, 32), 0.5)
    damaged = pixel + 0.1
    first, second = (augment(pixels, KEY, 2, ["a"]) for pixels in (pixel, damaged))
    gain = float((second - first).mean()) / 0.1
    torch.testing.assert_close(second - first, torch.full_like(first, 0.1 * gain))


def test_no_version_is_mirrored() -> None:
    """Prompts say left and right: a bright left half must stay on the left for the Policy."""
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., :16] = 1
    straight = torch.cat([augment(pixels, KEY, version, ["a"]) for version in range(40)])
    assert bool((straight[..., :8].mean(dim=(1, 2, 3)) > straight[..., 24:].mean(dim=(1, 2, 3))).all())


def test_augmentation_stays_small_and_in_range() -> None:
    coarse = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = functional.interpolate(coarse, (64, 64), mode="bilinear").expand(1, 3, -1, -1)
    for version in range(20):
        copy = augment(pixels, KEY, version, ["0"])
        assert copy.shape == pixels.shape and float(copy.min()) >= 0 and float(copy.max()) <= 1
        assert float((copy - pixels).abs().mean()) < 0.15


def test_metrics_are_of_the_version_that_is_shown() -> None:
    rated, encoder = rated_set(), ImageEncoder(SECTION)
    versions = np.where(np.arange(10) < 5, VERSIONS, 2)
    images = MeasuredImages(rated.pixels, rated.image_group, versions, encoder, KEY, CPU)
    its, epoch = np.array([7, 1, 4, 1]), 3
    pixels, metrics = images.training(its, epoch)
    torch.testing.assert_close(metrics, encoder.measure(pixels), atol=1e-4, rtol=1e-4)
    shown = [(rated.pixels[i : i + 1].float() / 255, str(rated.image_group[i]), int(epoch % versions[i])) for i in its]
    torch.testing.assert_close(
        pixels, torch.cat([augment(one, KEY, version, [group]) for one, group, version in shown])
    )
    plain, _ = images.seen(its)
    torch.testing.assert_close(plain, rated.pixels[torch.from_numpy(its)].float() / 255)
