"""The square picture that models take: nothing cropped, squashed, flipped or out of range."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PillowImage

from medsyn.data.images.pixels import fit_square


@pytest.mark.parametrize("shape", [(190, 512, 1), (512, 190, 3), (64, 64, 3), (17, 21, 1), (900, 900, 1), (16, 128, 3)])
@pytest.mark.parametrize("resolution", [32, 128, 256])
def test_the_result_is_a_square_of_three_channels_between_0_and_1(shape: tuple[int, ...], resolution: int) -> None:
    square = fit_square(np.random.default_rng(0).random(shape, dtype=np.float32).round(), resolution)
    assert square.shape == (resolution, resolution, 3)
    assert square.dtype == np.float32
    assert square.min() >= 0 and square.max() <= 1


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    np.testing.assert_allclose(fit_square(pixels, 64), pixels, atol=1e-6)


def test_grey_is_repeated() -> None:
    square = fit_square(np.random.default_rng(0).random((64, 64, 1), dtype=np.float32), 32)
    assert (square[..., :1] == square).all()


@pytest.mark.parametrize(("rows", "columns"), [(190, 512), (512, 190)])
def test_shapes_are_not_squashed(rows: int, columns: int) -> None:
    y, x = np.mgrid[:rows, :columns]
    disc = ((y - rows / 2) ** 2 + (x - columns / 2) ** 2 < 80**2).astype(np.float32)[..., None]
    mask = fit_square(disc, 256)[..., 0] > 0.5
    height, width = np.ptp(np.argwhere(mask), axis=0) + 1
    assert abs(height - width) <= 1 and abs(height - 160 * 256 / 512) <= 2


def test_nothing_is_cropped_and_nothing_flipped() -> None:
    pixels = np.zeros((40, 80, 1), np.float32)
    pixels[:8, :8], pixels[-8:, -8:] = 1.0, 0.5
    square = fit_square(pixels, 80)[..., 0]
    assert square[20:28, :8].min() > 0.9 and abs(square[52:60, 72:].mean() - 0.5) < 0.05
    assert square[:20].max() == square[60:].max() == 0


@pytest.mark.parametrize("level", [0.0, 0.2, 1.0])
def test_the_bars_continue_the_background(level: float) -> None:
    pixels = np.full((40, 100, 3), level, np.float32)
    pixels[10:30, 20:80] = 0.6
    square = fit_square(pixels, 100)
    np.testing.assert_allclose(square[:29], level, atol=1e-6)
    np.testing.assert_allclose(square[71:], level, atol=1e-6)


def test_the_bars_are_dark_where_anatomy_reaches_the_edge() -> None:
    pixels = np.full((100, 60, 1), 0.7, np.float32)
    pixels[:20] = 0.0
    assert fit_square(pixels, 100)[:, :19].max() < 0.01


def test_shrinking_is_antialiased() -> None:
    stripes = (np.arange(512) % 2).astype(np.float32)[None, :, None].repeat(512, axis=0)
    inner = fit_square(stripes, 64)[4:-4, 4:-4]
    assert np.abs(inner - 0.5).max() < 0.05


@pytest.mark.parametrize(
    ("side", "greatest", "mean"), [(64, 0, 0), (128, 0, 0), (380, 0, 0), (512, 6, 0.5), (1000, 6, 0.5)]
)
def test_only_what_shrinks_sixfold_is_averaged_first(side: int, greatest: float, mean: float) -> None:
    y, x = np.mgrid[:side, :side] / side
    pixels = (0.5 + 0.25 * np.sin(40 * x * y) + 0.25 * np.sign(np.sin(30 * x + 20 * y))).astype(np.float32)
    filtered = PillowImage.fromarray(pixels).resize((64, 64), PillowImage.Resampling.BICUBIC)
    difference = 255 * np.abs(fit_square(pixels[..., None], 64)[..., 0] - np.clip(np.asarray(filtered), 0, 1))
    assert difference.max() <= greatest and difference.mean() <= mean
    assert bool(difference.any()) == bool(greatest)
