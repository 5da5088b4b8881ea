"""Measures of an image's technical quality that do not depend on what it shows.

A few dozen numbers per picture: noise, contrast, sharpness, artefacts and the statistics of natural scenes. A network
trained from scratch on a few hundred ratings cannot find these itself, so the Selector is given them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-4  # below one grey level of 8-bit (0.004): keeps logarithms of perfectly flat pictures finite
SATURATED = 1.0 / 255.0  # this close to black or white counts as clipped
RINGS = 6  # of the power spectrum, half an octave each, below the Nyquist frequency
TILES = 4  # per side, for uneven illumination

_NOISE_KERNEL = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
_LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])

FEATURES: tuple[str, ...] = (
    "log_noise",
    "log_noise_flat",
    "log_snr",
    "mean",
    "rms_contrast",
    "range_contrast",
    "log_gradient",
    "log_laplacian",
    "laplacian_over_gradient",
    "gradient_kurtosis",
    "anisotropy",
    "log_blockiness",
    "clipped_black",
    "clipped_white",
    "jumps",
    "banding",
    "uneven",
    "grey_levels",
    *(f"log_ring_{ring}" for ring in range(RINGS)),
    "spectrum_slope",
    "mscn_spread",
    "mscn_kurtosis",
    "mscn_neighbours_across",
    "mscn_neighbours_down",
)


def grey(pixels: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of pixels [N, 3, H, W]: [N, 1, H, W]."""
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True)


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv2d(image, kernel.to(image).view(1, 1, *kernel.shape))


def _log(value: Tensor) -> Tensor:
    return torch.log(value + EPSILON)


def _kurtosis(values: Tensor) -> Tensor:
    """Log kurtosis over everything but the first dimension."""
    values = values.flatten(1)
    centred = values - values.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1)
    return torch.log(centred.pow(4).mean(dim=1) / (variance.square() + EPSILON**2) + 1.0)


def _noise(image: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation of the noise: over the whole picture and over its flattest quarter that is not background.

    J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996): the difference
    of two Laplacians cancels image structure, what is left has sqrt(pi / 2) / 6 of the noise in its mean magnitude.
    """
    scale = math.sqrt(math.pi / 2) / 6
    residual = _filter(image, _NOISE_KERNEL).abs().flatten(1)
    inner = image[:, :, 1:-1, 1:-1].flatten(1)
    structure = functional.avg_pool2d(image, 3, stride=1)
    spread = (functional.avg_pool2d(image.square(), 3, stride=1) - structure.square()).flatten(1)
    background = (inner <= SATURATED) | (inner >= 1 - SATURATED)
    flat = spread.masked_fill(background, torch.inf).argsort(dim=1, stable=True)[:, : inner.shape[1] // 4]
    return scale * residual.mean(dim=1), scale * residual.gather(1, flat).mean(dim=1)


def _rings(image: Tensor) -> Tensor:
    """Log power in RINGS half-octave rings below the Nyquist frequency, relative to the whole: [N, RINGS]."""
    height, width = image.shape[-2:]
    window = torch.outer(
        torch.hann_window(height, periodic=False, device=image.device),
        torch.hann_window(width, periodic=False, device=image.device),
    )
    centred = (image - image.mean(dim=(-2, -1), keepdim=True)) * window
    power = torch.fft.rfft2(centred).abs().square().squeeze(1)
    radius = torch.hypot(
        torch.fft.fftfreq(height, device=image.device).view(-1, 1), torch.fft.rfftfreq(width, device=image.device)
    )
    total = power.sum(dim=(1, 2))
    rings = []
    for ring in range(RINGS):
        outer = 0.5 * 2 ** (-ring / 2)
        inside = (radius <= outer) & (radius > outer / math.sqrt(2))
        rings.append(torch.log((power * inside).sum(dim=(1, 2)) / (total + EPSILON) + 1e-7))
    return torch.stack(rings, dim=1)


def _natural_scene(image: Tensor) -> list[Tensor]:
    """Statistics of mean-subtracted contrast-normalised (MSCN) coefficients.

    A. Mittal, A. K. Moorthy, A. C. Bovik, "No-reference image quality assessment in the spatial domain", IEEE
    Transactions on Image Processing 21 (2012).
    """
    offsets = torch.arange(-3, 4, dtype=image.dtype, device=image.device)
    gauss = torch.exp(-offsets.square() / (2 * (7 / 6) ** 2))
    kernel = torch.outer(gauss, gauss) / gauss.sum().square()
    padded = functional.pad(image, (3, 3, 3, 3), mode="replicate")
    mean = _filter(padded, kernel)
    deviation = (_filter(padded.square(), kernel) - mean.square()).clamp(min=0).sqrt()
    mscn = (image - mean) / (deviation + SATURATED)
    return [
        _log(mscn.flatten(1).std(dim=1)),
        _kurtosis(mscn),
        (mscn[..., 1:] * mscn[..., :-1]).flatten(1).mean(dim=1),
        (mscn[..., 1:, :] * mscn[..., :-1, :]).flatten(1).mean(dim=1),
    ]


def _blockiness(across: Tensor, down: Tensor) -> Tensor:
    """Log ratio of the steps on an 8 x 8 grid (JPEG, an autoencoder's patches) to the steps elsewhere."""
    on_grid = across[..., 7::8].abs().flatten(1).mean(dim=1) + down[..., 7::8, :].abs().flatten(1).mean(dim=1)
    everywhere = across.abs().flatten(1).mean(dim=1) + down.abs().flatten(1).mean(dim=1)
    return _log(on_grid) - _log(everywhere)


@torch.no_grad()
def quality_features(pixels: Tensor) -> Tensor:
    """Quality metrics of images.

    Args:
        pixels: [N, 3, H, W], values 0..1, H and W at least 16.

    Returns:
        [N, len(FEATURES)] float32, finite for every finite input; not standardised.
    """
    image = grey(pixels.float())
    flat = image.flatten(1)
    across, down = image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]
    energy_across, energy_down = across.square().flatten(1).mean(dim=1), down.square().flatten(1).mean(dim=1)
    gradient = _log((energy_across + energy_down).sqrt())
    laplacian = _log(_filter(image, _LAPLACIAN).square().flatten(1).mean(dim=1).sqrt())
    noise, noise_flat = _noise(image)
    ordered, percent = flat.sort(dim=1).values, flat.shape[1] // 100  # torch.quantile refuses large batches
    steps = torch.cat([across.flatten(1), down.flatten(1)], dim=1).abs()
    rings = _rings(image)
    slope_weights = torch.linspace(1, -1, RINGS, device=rings.device)  # rings run from high to low frequency
    columns = image.mean(dim=-2).squeeze(1)
    lines = image.mean(dim=-1).squeeze(1)
    tiles = functional.adaptive_avg_pool2d(image, TILES).flatten(1)
    levels = torch.stack([torch.histc(picture, bins=64, min=0, max=1) for picture in flat]) / flat.shape[1]
    return torch.stack(
        [
            _log(noise),
            _log(noise_flat),
            _log(flat.mean(dim=1)) - _log(noise),
            flat.mean(dim=1),
            flat.std(dim=1),
            ordered[:, -1 - percent] - ordered[:, percent],
            gradient,
            laplacian,
            laplacian - gradient,
            _kurtosis(torch.cat([across.flatten(1), down.flatten(1)], dim=1)),
            _log(energy_across) - _log(energy_down),
            _blockiness(across, down),
            (flat <= SATURATED).float().mean(dim=1),
            (flat >= 1 - SATURATED).float().mean(dim=1),
            (steps > 0.25).float().mean(dim=1),
            _log(columns.diff(n=2, dim=1).abs().mean(dim=1) + lines.diff(n=2, dim=1).abs().mean(dim=1)),
            tiles.std(dim=1),
            -(levels * torch.log(levels + 1e-9)).sum(dim=1),
            *rings.unbind(dim=1),
            (rings * slope_weights).sum(dim=1),
            *_natural_scene(image),
        ],
        dim=1,
    )
