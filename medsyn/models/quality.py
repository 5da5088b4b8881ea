"""Measures of an image's technical quality that do not depend on what it shows.

Some ninety numbers per picture: noise, contrast, sharpness, artefacts, the statistics of natural scenes, and where the
edges are. A network
trained from scratch on a few hundred ratings cannot find these itself, so the Selector is given them. What each group
of them is worth is measured in docs/scorers.md.

All but the clipped shares are taken relative to the picture's own black (`_prepare`): a background a few grey levels
brighter is no fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

METRICS = 1  # raise it when a picture's metrics become others
EPSILON = 1e-4  # below one grey level of 8-bit (0.004): keeps logarithms of perfectly flat pictures finite
LEVEL = 1.0 / 255.0
STEP = 0.01  # a mean step between lines that is too small to be seen: added before ratios of steps are taken
RINGS = 6  # of the power spectrum, half an octave each, below the Nyquist frequency
TILES = 4  # per side, for uneven illumination
PARTS = 3  # per side, for where edges are
WAYS = 4  # that edges run: down, rising, across, falling
GRIDS = (2, 3, 4, 6, 8)  # patches per side that a picture may have been put together from
PERIODS = (2, 4, 8, 16)  # pixels of the grids of decoders and of JPEG
NEIGHBOURS = 3  # lines on either side that a line's step is compared with
EXTREME = 0.02  # share of pixels that are darker than black, or brighter than white

_SECOND = (1.0, -2.0, 1.0)  # difference
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_GAUSS = tuple(math.exp(-(offset**2) / (2 * (7 / 6) ** 2)) for offset in range(-3, 4))


def grey(pixels: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of pixels [N, 3, H, W]: [N, 1, H, W]."""
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class _Picture:
    """What most metrics start from; N pictures, H x W."""

    image: Tensor  # [N, 1, H, W], 0 is the picture's own black
    ordered: Tensor  # [N, H * W], the grey values before that, ascending
    white: Tensor  # [N], above black
    foreground: Tensor  # [N, 1, H, W], 1 where there is something, else 0
    across: Tensor  # [N, 1, H, W - 1], steps between columns
    down: Tensor  # [N, 1, H - 1, W], between rows
    residual: Tensor  # [N, 1, H - 2, W - 2], magnitude of the noise, `_noise`
    spread: Tensor  # [N, 1, H - 2, W - 2], standard deviation in windows of 3 x 3
    laplacian: Tensor  # [N, 1, H - 2, W - 2]


def _prepare(values: Tensor) -> _Picture:
    ordered = values.flatten(1).sort(dim=1).values  # torch.quantile refuses large batches
    cut = int(EXTREME * ordered.shape[1])
    black = ordered[:, cut]
    white = ordered[:, -1 - cut] - black
    image = values - black.view(-1, 1, 1, 1)
    around = _box(_padded(image, 2), 5)
    mean = _box(image, 3)
    return _Picture(
        image=image,
        ordered=ordered,
        white=white,
        foreground=(around > 0.1 * white.view(-1, 1, 1, 1)).float(),
        across=image[..., 1:] - image[..., :-1],
        down=image[..., 1:, :] - image[..., :-1, :],
        residual=_filtered(image, _SECOND).abs() * (math.sqrt(math.pi / 2) / 6),
        spread=(_box(image.square(), 3) - mean.square()).clamp(min=0).sqrt(),
        laplacian=_along(image[..., 1:-1, :], _SECOND, -1) + _along(image[..., 1:-1], _SECOND, -2),
    )


def _padded(image: Tensor, width: int) -> Tensor:
    return functional.pad(image, (width, width, width, width), mode="replicate")


def _along(image: Tensor, kernel: Sequence[float], side: int) -> Tensor:
    """The picture under a kernel along one side, which gets shorter; many times faster than conv2d of one channel."""
    length = image.shape[side] - len(kernel) + 1
    total = kernel[0] * image.narrow(side, 0, length)
    for at, weight in enumerate(kernel[1:], 1):
        total.add_(image.narrow(side, at, length), alpha=weight)
    return total


def _filtered(image: Tensor, kernel: Sequence[float]) -> Tensor:
    """The picture under a separable kernel, the same along both sides."""
    return _along(_along(image, kernel, -1), kernel, -2)


def _box(image: Tensor, width: int) -> Tensor:
    """Means of windows of `width` x `width`."""
    return _filtered(image, (1 / width,) * width)


def _smoothed(image: Tensor, kernel: Sequence[float]) -> Tensor:
    """The picture under a separable kernel that sums to 1; edges are continued."""
    return _filtered(_padded(image, len(kernel) // 2), kernel)


def _mean(values: Tensor) -> Tensor:
    """Mean over everything but the first dimension."""
    return values.flatten(1).mean(dim=1)


def _inside(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where the mask, of the same size, is 1; 0 where it is so nowhere."""
    return (values * mask).flatten(1).sum(dim=1) / (mask.flatten(1).sum(dim=1) + 1)


def _log(value: Tensor) -> Tensor:
    return torch.log(value + EPSILON)


def _kurtosis(values: Tensor) -> Tensor:
    """Log kurtosis over everything but the first dimension."""
    values = values.flatten(1)
    centred = values - values.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1)
    return torch.log(centred.pow(4).mean(dim=1) / (variance.square() + EPSILON**2) + 1.0)


Metrics = dict[str, Tensor]  # name: [N]


def _noise(picture: _Picture) -> Metrics:
    """Noise everywhere, where there is something, in the background, and in the flattest eighth of what there is.

    J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996): the difference
    of two Laplacians cancels image structure, what is left has sqrt(pi / 2) / 6 of the noise in its mean magnitude.
    """
    inner = picture.foreground[..., 1:-1, 1:-1]
    size = inner[0].numel()
    spread = picture.spread.flatten(1).masked_fill(inner.flatten(1) < 0.5, torch.inf)
    flat = spread.topk(max(1, size // 8), dim=1, largest=False).indices
    in_flat = picture.residual.flatten(1).gather(1, flat).mean(dim=1)
    signal = _inside(picture.image, picture.foreground)
    return {
        "log_noise": _log(_mean(picture.residual)),
        "log_noise_foreground": _log(_inside(picture.residual, inner)),
        "log_noise_background": _log(_inside(picture.residual, 1 - inner)),
        "log_noise_flat": _log(in_flat),
        "log_snr": _log(signal.clamp(min=0)) - _log(in_flat),
    }


def _contrast(picture: _Picture) -> Metrics:
    mean = _inside(picture.image, picture.foreground)
    square = _inside(picture.image.square(), picture.foreground)
    percent = picture.ordered.shape[1] // 100
    tiles = functional.adaptive_avg_pool2d(picture.image, TILES)
    place = torch.linspace(-1, 1, TILES, device=mean.device)
    slopes = [(tiles.mean(dim=side).squeeze(1) * place).mean(dim=1) for side in (-1, -2)]
    bowl = place.square().view(-1, 1) + place.square() - 2 * place.square().mean()
    return {
        "mean": mean,
        "white": picture.white,
        "rms_contrast": (square - mean.square()).clamp(min=0).sqrt(),
        "range_contrast": picture.ordered[:, -1 - percent] - picture.ordered[:, percent],
        "content": _mean(picture.foreground),
        "uneven": tiles.flatten(1).std(dim=1),
        "slope": torch.hypot(*slopes),
        "bowl": (tiles.squeeze(1) * bowl).mean(dim=(1, 2)),
    }


def _sharpness(picture: _Picture) -> Metrics:
    """Sharpness, also by how much of the steps a further blur takes away.

    F. Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric", SPIE
    Human Vision and Electronic Imaging XII (2007).
    """
    energy = _mean(picture.across.square()) + _mean(picture.down.square())
    gradient, laplacian = _log(energy.sqrt()), _log(_mean(picture.laplacian.square()).sqrt())
    blurred = _smoothed(picture.image, _BINOMIAL)
    steps = _mean(picture.across.abs()) + _mean(picture.down.abs())
    left = _mean((blurred[..., 1:] - blurred[..., :-1]).abs()) + _mean(
        (blurred[..., 1:, :] - blurred[..., :-1, :]).abs()
    )
    return {
        "log_gradient": gradient,
        "laplacian_over_gradient": laplacian - gradient,
        "gradient_over_contrast": gradient - _log(picture.ordered.std(dim=1)),
        "reblur": _log(steps) - _log(left),
        "gradient_kurtosis": _kurtosis(torch.cat([picture.across.flatten(1), picture.down.flatten(1)], dim=1)),
        "laplacian_kurtosis": _kurtosis(picture.laplacian),
    }


def _directions(picture: _Picture) -> Metrics:
    """How far edges run in one direction: along the axes, anywhere in the picture, and from place to place.

    The last two are of the structure tensor: J. Bigun and G. H. Granlund, "Optimal orientation detection of linear
    symmetry", ICCV (1987).
    """
    across, down = picture.across[..., :-1, :], picture.down[..., :-1]
    xx, yy, xy = across.square(), down.square(), across * down
    whole = torch.hypot(_mean(xx - yy), 2 * _mean(xy)) / (_mean(xx + yy) + 1e-6)
    xx, yy, xy = (functional.avg_pool2d(one, 5, stride=2) for one in (xx, yy, xy))
    local = _mean(torch.hypot(xx - yy, 2 * xy)) / (_mean(xx + yy) + 1e-6)
    axes = _log(_mean(picture.across.square())) - _log(_mean(picture.down.square()))
    return {"anisotropy": axes, "direction": whole, "coherence": local}


def _seams(picture: _Picture) -> Metrics:
    """Lines at which the picture changes more than at their neighbours: whole ones, and in each of four strips."""
    metrics = {}
    for name, steps in (("rows", picture.down.transpose(-1, -2)), ("columns", picture.across)):
        steps = steps.squeeze(1).abs()  # [N, along the line, which line]
        strip = steps.shape[1] // 4
        strips = steps[:, : 4 * strip].unflatten(1, (4, strip)).mean(dim=2)
        metrics[f"seam_{name}"] = _standing_out(steps.mean(dim=1, keepdim=True), STEP)
        metrics[f"part_seam_{name}"] = _standing_out(strips, 2 * STEP)
    return metrics


def _standing_out(steps: Tensor, least: float) -> Tensor:
    """The largest log ratio of a line's step to the median of its neighbours', steps [N, parts, lines]."""
    padded = functional.pad(steps, (NEIGHBOURS, NEIGHBOURS), mode="replicate")
    lines = steps.shape[-1]
    near = [padded[..., at : at + lines] for at in range(2 * NEIGHBOURS + 1) if at != NEIGHBOURS]
    usual = torch.stack(near, dim=-1).median(dim=-1).values
    return (torch.log(steps + least) - torch.log(usual + least)).flatten(1).amax(dim=1)


def _grids(picture: _Picture) -> Metrics:
    """Steps on regular grids relative to those elsewhere: of patches, of a decoder's pixels, of JPEG's blocks."""
    sides = [picture.across.abs().mean(dim=-2).squeeze(1), picture.down.abs().mean(dim=-1).squeeze(1)]
    patches = []
    for count in GRIDS:
        ratio = torch.zeros_like(picture.white)
        for steps in sides:
            on_grid = torch.arange(1, count, device=steps.device) * ((steps.shape[1] + 1) // count) - 1
            ratio = ratio + torch.log(steps[:, on_grid].mean(dim=1) + STEP) - torch.log(steps.mean(dim=1) + STEP)
        patches.append(ratio)
    metrics = {"patch_grid": torch.stack(patches).amax(dim=0)}
    for period in PERIODS:
        ratio = torch.zeros_like(picture.white)
        for steps in sides:
            whole = steps.shape[1] // period * period
            if whole >= 3 * period:
                phases = steps[:, :whole].unflatten(1, (-1, period)).mean(dim=1)
                ratio = ratio + torch.log(phases.amax(dim=1) + LEVEL / 2) - torch.log(phases.mean(dim=1) + LEVEL / 2)
        metrics[f"grid_{period}"] = ratio
    return metrics


def _levels(picture: _Picture) -> Metrics:
    """Clipped and flat parts, and the histogram: its entropy, and levels that never occur."""
    ordered = picture.ordered
    inner = picture.foreground[..., 1:-1, 1:-1]
    flat = (picture.spread < 0.75 * LEVEL).float()
    black = ordered[:, int(EXTREME * ordered.shape[1]), None]
    level = ((ordered - black) * 255).round().long().clamp(0, 255)
    counts = torch.zeros(len(ordered), 256, device=ordered.device).scatter_add_(1, level, torch.ones_like(ordered))
    share = counts / ordered.shape[1]
    coarse = share.unflatten(1, (64, 4)).sum(dim=2)
    rough = (share[:, 1:] - share[:, :-1])[:, 2:-2].abs().sum(dim=1)
    return {
        "clipped_black": (ordered <= ordered[:, :1] + LEVEL).float().mean(dim=1),
        "clipped_white": (ordered >= ordered[:, -1:] - LEVEL).float().mean(dim=1),
        "full_white": (ordered >= 1 - LEVEL).float().mean(dim=1),
        "flat_foreground": _mean(flat * inner) / (_mean(inner) + 0.05),
        "flat": (picture.spread < 0.3 * LEVEL).float().flatten(1).mean(dim=1),
        "grey_levels": -(coarse * torch.log(coarse + 1e-9)).sum(dim=1),
        "empty_levels": (share == 0).float().mean(dim=1),
        "rough_histogram": rough / (share[:, 3:-2].sum(dim=1) + EXTREME),
    }


def _banding(picture: _Picture) -> Metrics:
    """Lines that differ from their neighbours, and how much of the fine structure they make up."""
    fine = picture.image - _box(_padded(picture.image, 2), 5)
    energy = _mean(fine.square())
    metrics = {}
    for name, side in (("rows", -1), ("columns", -2)):
        lines = picture.image.mean(dim=side).squeeze(1)
        metrics[f"banding_{name}"] = _log(lines.diff(n=2, dim=1).abs().mean(dim=1))
        metrics[f"lines_{name}"] = torch.log(fine.mean(dim=side).squeeze(1).square().mean(dim=1) + 1e-7) - torch.log(
            energy + 1e-6
        )
    return metrics


def _spectrum(picture: _Picture) -> Metrics:
    """Log power by ring relative to the whole; how far single frequencies, and one direction, stand out in a ring."""
    height, width = picture.image.shape[-2:]
    device = picture.image.device
    window = torch.outer(
        torch.hann_window(height, periodic=False, device=device),
        torch.hann_window(width, periodic=False, device=device),
    )
    centred = (picture.image - picture.image.mean(dim=(-2, -1), keepdim=True)) * window
    power = torch.fft.rfft2(centred).abs().square().squeeze(1)
    down = torch.fft.fftfreq(height, device=device).view(-1, 1)
    across = torch.fft.rfftfreq(width, device=device).view(1, -1)
    radius, twice = torch.hypot(down, across), 2 * torch.atan2(down, across)
    total = power.sum(dim=(1, 2)) + EPSILON
    metrics = {"log_corners": torch.log(power[:, radius > 0.5].sum(dim=1) / total + 1e-7)}
    for ring in range(RINGS):
        outer = 0.5 * 2 ** (-ring / 2)
        inside = (radius <= outer) & (radius > outer / math.sqrt(2))
        its = power[:, inside]
        metrics[f"log_ring_{ring}"] = torch.log(its.sum(dim=1) / total + 1e-7)
        if ring < RINGS - 1:
            metrics[f"peak_{ring}"] = torch.log(its.amax(dim=1) + 1e-6) - torch.log(its.mean(dim=1) + 1e-6)
        if ring < RINGS // 2:
            angle = twice[inside]
            one_way = torch.hypot((its * angle.cos()).sum(dim=1), (its * angle.sin()).sum(dim=1))
            metrics[f"ring_direction_{ring}"] = one_way / (its.sum(dim=1) + 1e-7)
    return metrics


def _ghosts(picture: _Picture) -> Metrics:
    """The highest peak, away from the middle, of the autocorrelation of the Laplacian: a second, fainter picture."""
    height, width = picture.image.shape[-2:]
    size = (2 * height, 2 * width)  # so that nothing wraps around
    power = torch.fft.rfft2(picture.laplacian.squeeze(1), s=size).abs().square()
    alike = torch.fft.irfft2(power, s=size)
    alike = alike / (alike[:, :1, :1] + 1e-9)
    rows, columns = height // 2, width // 2
    alike = torch.maximum(alike[:, :rows, :columns], alike[:, :rows, -columns:].flip(-1)).clone()
    near = max(4, min(height, width) // 16)
    alike[:, :near, :near] = 0
    highest = alike.flatten(1).topk(max(3, rows * columns // 100), dim=1).values
    return {"ghost": highest[:, 0], "ghost_alone": highest[:, 0] - highest[:, -1]}


def _natural_scene(picture: _Picture) -> Metrics:
    """Statistics of mean-subtracted contrast-normalised (MSCN) coefficients.

    A. Mittal, A. K. Moorthy, A. C. Bovik, "No-reference image quality assessment in the spatial domain", IEEE
    Transactions on Image Processing 21 (2012).
    """
    gauss = [weight / sum(_GAUSS) for weight in _GAUSS]
    mean = _smoothed(picture.image, gauss)
    deviation = (_smoothed(picture.image.square(), gauss) - mean.square()).clamp(min=0).sqrt()
    mscn = (picture.image - mean) / (deviation + LEVEL)
    return {
        "mscn_spread": _log(mscn.flatten(1).std(dim=1)),
        "mscn_kurtosis": _kurtosis(mscn),
        "mscn_neighbours_across": _mean(mscn[..., 1:] * mscn[..., :-1]),
        "mscn_neighbours_down": _mean(mscn[..., 1:, :] * mscn[..., :-1, :]),
        "mscn_diagonal": _mean(mscn[..., 1:, 1:] * mscn[..., :-1, :-1]),
        "mscn_two_apart": _mean(mscn[..., 2:] * mscn[..., :-2]) + _mean(mscn[..., 2:, :] * mscn[..., :-2, :]),
    }


def _layout(picture: _Picture) -> Metrics:
    """How strong the edges of each orientation are in each part of the picture, left and right together.

    A picture that is put together from others, or moved around its own border, has the edges of a good one in other
    places, which no mean over the whole can tell. The picture and its mirror image have the same metrics. Cells and
    orientations as in N. Dalal and B. Triggs, "Histograms of oriented gradients for human detection", CVPR (2005), but
    few of them: there are only a few hundred ratings.
    """
    across = (picture.across[..., 1:, :] + picture.across[..., :-1, :]) / 2
    down = (picture.down[..., 1:] + picture.down[..., :-1]) / 2
    way = (torch.atan2(down, across) * (WAYS / math.pi)).round().remainder(WAYS)
    energy = across.square() + down.square()
    strength = functional.adaptive_avg_pool2d(torch.cat([energy * (way == one) for one in range(WAYS)], dim=1), PARTS)
    mirrored = strength.flip(-1)[:, [-one % WAYS for one in range(WAYS)]]
    both = _log(((strength + mirrored) / 2).sqrt())
    return {
        f"edges_{one}_{row}_{column}": both[:, one, row, column]
        for one in range(WAYS)
        for row in range(PARTS)
        for column in range((PARTS + 1) // 2)  # from the side to the middle
    }


_GROUPS = (
    *(_noise, _contrast, _sharpness, _directions, _seams, _grids, _levels, _banding, _spectrum, _ghosts),
    *(_natural_scene, _layout),
)


def _measure(pixels: Tensor) -> Metrics:
    picture = _prepare(grey(pixels.float()))
    return {name: value for group in _GROUPS for name, value in group(picture).items()}


@torch.no_grad()
def quality_features(pixels: Tensor) -> Tensor:
    """Quality metrics of images.

    Args:
        pixels: [N, 3, H, W], values 0..1, H and W at least 16.

    Returns:
        [N, len(FEATURES)] float32, finite for every finite input; not standardised.
    """
    return torch.stack(list(_measure(pixels).values()), dim=1)


FEATURES: tuple[str, ...] = tuple(_measure(torch.zeros(1, 3, 16, 16)))
