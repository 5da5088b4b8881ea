"""Quality metrics against pictures whose faults are known, because the test made them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medsyn.models.quality import FEATURES, quality_features

SIDE = 64


def scene(seed: int = 0) -> Tensor:
    """A smooth picture with edges, [1, 3, SIDE, SIDE], well inside 0..1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = 0.35 + 0.2 * np.sin(2 * np.pi * (x * rng.uniform(0.5, 2) + y * rng.uniform(0.5, 2)))
    for _ in range(4):
        cy, cx, radius = rng.uniform([0.2, 0.2, 0.05], [0.8, 0.8, 0.2])
        picture = np.where(np.hypot(y - cy, x - cx) < radius, picture + 0.25, picture)
    return torch.from_numpy(picture).float().clamp(0, 1).expand(1, 3, SIDE, SIDE).contiguous()


def noisy(pixels: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(pixels.shape[-2:], generator=torch.Generator().manual_seed(1))
    return (pixels + sigma * noise).clamp(0, 1)


def blurred(pixels: Tensor) -> Tensor:
    return functional.avg_pool2d(functional.pad(pixels, (3, 3, 3, 3), mode="replicate"), 7, stride=1)


def jpeg(pixels: Tensor) -> Tensor:
    stream = io.BytesIO()
    Image.fromarray((pixels[0].permute(1, 2, 0) * 255).byte().numpy()).save(stream, "JPEG", quality=5)
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)[None].float() / 255


def shuffled(pixels: Tensor) -> Tensor:
    half = SIDE // 2
    return torch.roll(pixels, (half, half), (-2, -1)).where(torch.arange(SIDE) < half, pixels)


def measure(pixels: Tensor, name: str) -> float:
    return float(quality_features(pixels)[0, FEATURES.index(name)])


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1])
def test_noise_is_measured_in_units_of_its_standard_deviation(sigma: float) -> None:
    flat = torch.full((1, 3, SIDE, SIDE), 0.5)
    assert np.exp(measure(noisy(flat, sigma), "log_noise")) == pytest.approx(sigma, rel=0.15)


def test_edges_are_not_taken_for_noise_where_the_picture_is_flat() -> None:
    assert measure(scene(), "log_noise_flat") < measure(noisy(scene(), 0.03), "log_noise_flat") - 1


def test_background_does_not_hide_the_noise() -> None:
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    pixels[..., SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 0.5
    speckled = torch.where(pixels > 0, noisy(pixels, 0.05), pixels)
    assert np.exp(measure(speckled, "log_noise_flat")) > 5 * np.exp(measure(pixels, "log_noise_flat"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("fault", "name", "direction"),
    [
        (lambda p: noisy(p, 0.1), "log_snr", -1),
        (lambda p: noisy(p, 0.1), "log_ring_0", 1),
        (blurred, "reblur", -1),
        (blurred, "log_gradient", -1),
        (blurred, "laplacian_over_gradient", -1),
        (jpeg, "grid_8", 1),
        (lambda p: p * 0.3 + 0.3, "rms_contrast", -1),
        (lambda p: p * 0.3 + 0.3, "range_contrast", -1),
        (lambda p: (p * 3).clamp(0, 1), "clipped_white", 1),
        (lambda p: (p - 0.4).clamp(0, 1), "clipped_black", 1),
        (lambda p: (p * 2) % 1, "gradient_over_contrast", 1),
        (lambda p: p + torch.arange(SIDE) % 2 * 0.1, "banding_columns", 1),
        (lambda p: p * 0.4 + torch.linspace(0, 0.6, SIDE), "uneven", 1),
        (lambda p: (p * 8).round() / 8, "grey_levels", -1),
        (lambda p: p * 0.5, "mean", -1),
        (lambda p: p.where(torch.arange(SIDE).view(-1, 1) < 31, p.flip(-1)), "seam_rows", 1),
        (lambda p: p.where(torch.arange(SIDE) < 31, p.flip(-2)), "seam_columns", 1),
        (shuffled, "patch_grid", 1),
        (lambda p: 0.6 * p + 0.4 * torch.roll(p, 20, -1), "ghost", 1),
        (lambda p: p + 0.1 * torch.sin(torch.arange(SIDE) * 1.3), "peak_2", 1),
        (lambda p: (p * 20).round() / 20, "empty_levels", 1),
        (lambda p: (p * 20).round() / 20, "rough_histogram", 1),
    ],
)
def test_every_fault_moves_its_metric(fault, name: str, direction: int, seed: int) -> None:
    clean = scene(seed)
    assert direction * (measure(fault(clean), name) - measure(clean, name)) > 0.005


def test_where_edges_are_and_how_they_run_is_measured() -> None:
    pixels = torch.full((1, 3, SIDE, SIDE), 0.2)
    pixels[..., :16, :16] += (torch.arange(16) % 8 < 4) * 0.2  # stripes that run down, in a corner
    edges = {name: measure(pixels, name) for name in FEATURES if name.startswith("edges")}
    assert max(edges, key=edges.__getitem__) == "edges_0_0_0"
    moved = torch.roll(pixels, SIDE // 3, -2)
    assert max(edges, key=lambda name: measure(moved, name)) == "edges_0_1_0"
    turned = pixels.transpose(-1, -2)
    assert max(edges, key=lambda name: measure(turned, name)) == "edges_2_0_0"


@pytest.mark.parametrize("side", [SIDE, SIDE - 1])
def test_a_picture_and_its_mirror_image_have_the_same_edges(side: int) -> None:
    """Training mirrors pictures and does not measure them again."""
    pixels = noisy(scene(), 0.02)[..., :side, :side]
    before, after = (
        [measure(one, name) for name in FEATURES if name.startswith("edges")] for one in (pixels, pixels.flip(-1))
    )
    assert after == pytest.approx(before, abs=1e-3) and np.ptp(before) > 0.1


@pytest.mark.parametrize("side", [16, 33, 256])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_blank_picture_of_any_size_has_finite_metrics(side: int, value: float) -> None:
    features = quality_features(torch.full((2, 3, side, side + 1), value))
    assert features.shape == (2, len(FEATURES)) and bool(features.isfinite().all())


@pytest.mark.parametrize("levels", [5, 20])
def test_a_brighter_background_is_no_fault(levels: int) -> None:
    """Only the clipped shares may see where 0 is; the picture's own white stays below 1 here."""
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    pixels[..., 8:-8, 8:-8] = scene()[..., 8:-8, 8:-8]
    torch.testing.assert_close(quality_features(pixels + levels / 255), quality_features(pixels), atol=2e-3, rtol=2e-3)


def test_an_image_is_measured_the_same_alone_and_in_company() -> None:
    pictures = torch.cat([scene(0), noisy(scene(1), 0.1), blurred(scene(2))])
    together = quality_features(pictures)
    alone = torch.cat([quality_features(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_half_precision_pixels_are_measured_in_full_precision() -> None:
    features = quality_features(scene().half())
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, quality_features(scene()), atol=0.3, rtol=0.1)


def test_metrics_carry_no_gradient() -> None:
    assert not quality_features(scene().requires_grad_()).requires_grad
