from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from medsyn.data.phantoms.phantom import KINDS, draw_phantom
from medsyn.models.image_features import describe, grey, shrink
from tests.helpers.synthetic_campaign import phantom_pixels


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.mean((describe(first) - describe(second)) ** 2)))


def test_a_kind_is_nearer_to_itself_than_to_any_other() -> None:
    pictures = {kind: [phantom_pixels(draw_phantom(kind, k, 3, quality=3), 64) for k in range(4)] for kind in KINDS}
    for kind, (one, *others) in pictures.items():
        own = np.mean([distance(one, other) for other in others])
        foreign = min(distance(one, other) for name in KINDS if name != kind for other in pictures[name])
        assert own < foreign, kind


def test_features_see_blur() -> None:
    sharp = [phantom_pixels(draw_phantom("Chest CT", k, 3, quality=3), 64) for k in range(4)]
    blurred = [np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(2))) for one in sharp]
    between_sharp = np.mean([distance(sharp[0], other) for other in sharp[1:]])
    assert np.mean([distance(sharp[0], other) for other in blurred[1:]]) > between_sharp * 1.1


def test_features_see_a_mirrored_image() -> None:
    picture = phantom_pixels(draw_phantom("Brain MRI", 0, 3, quality=3, finding="enhancing mass", side="left"), 64)
    assert distance(picture, picture[:, ::-1]) > 0.05


def test_the_mean_square_is_one_at_every_size_so_that_the_kernel_of_kid_is_in_its_scale() -> None:
    phantom = draw_phantom("Fundus", 0, 3)
    for size in (40, 64, 200):
        features = describe(phantom_pixels(phantom, size))
        assert features.dtype == np.float32
        assert np.mean(features**2) == np.float32(1).item() or abs(np.mean(features**2) - 1) < 1e-3


def test_size_matters_little() -> None:
    one, other = draw_phantom("OCT", 0, 3, quality=3), draw_phantom("OCT", 1, 3, quality=3)
    large, small = phantom_pixels(one, 256), phantom_pixels(one, 64)
    assert distance(large, small) < distance(small, phantom_pixels(other, 64))


def test_a_black_and_a_white_image_have_finite_and_different_features() -> None:
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert np.isfinite(describe(black)).all() and np.isfinite(describe(white)).all()
    assert distance(black, white) > 0.1


def test_features_are_a_function_of_the_image() -> None:
    picture = phantom_pixels(draw_phantom("OCT", 0, 3), 64)
    assert np.array_equal(describe(picture), describe(picture.copy()))


def test_shrink_keeps_an_image_that_has_the_size_and_grey_is_the_mean_of_the_channels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert shrink(picture, 64) is picture
    assert shrink(picture, 16).shape == (16, 16, 3)
    assert np.allclose(grey(picture), picture.astype(float).mean(2) / 255, atol=1e-6)
