"""Damage by amount: the same severity changes an image as much, whatever the kind and whatever the image.

The amount of change is the structural dissimilarity 1 - SSIM of the grey pictures, mean over all pixels (Z. Wang et
al., "Image quality assessment: from error visibility to structural similarity", IEEE Transactions on Image Processing
13, 2004), because a mean difference of three grey levels is strong blur and invisible noise. Severity 1 is an amount
of `FULL`; for each image the strength is searched that comes to the amount asked for. Some images cannot be changed
as much by some kinds, such as a dark one by a gain: they get all there is, and `changed` says whether that is
anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medsyn.data.degradations.kinds import DEGRADATIONS
from medsyn.data.degradations.layout import stitched

FULL = 0.5  # 1 - SSIM at severity 1: twice what separates a good image from a poor one with most kinds
LEAST = 0.01  # less is no visible change
_WINDOW = 7  # pixels
_TOLERANCE = 0.1  # of the amount asked for
_TRIES = 9
_LUMA = (0.299, 0.587, 0.114)


def amount(before: Tensor, after: Tensor) -> float:
    """How much an image has changed: 1 - SSIM, 0 (not at all) to about 1.

    Args:
        before: [C, H, W], values 0..1, C 1 or 3, sides at least 7.
        after: same shape.
    """
    one, two = _grey(before), _grey(after)
    stride = max(1, min(one.shape) // 32)  # windows that stand apart tell as much
    moments = torch.stack([one, two, one * one, two * two, one * two])
    mean1, mean2, square1, square2, product = functional.avg_pool2d(moments[:, None], _WINDOW, stride=stride)[:, 0]
    variance1, variance2 = (square1 - mean1 * mean1).clamp(min=0), (square2 - mean2 * mean2).clamp(min=0)
    similar = (2 * mean1 * mean2 + 0.01**2) / (mean1**2 + mean2**2 + 0.01**2)
    similar = similar * (2 * (product - mean1 * mean2) + 0.03**2) / (variance1 + variance2 + 0.03**2)
    return float(1 - similar.mean())


def changed(before: Tensor, after: Tensor) -> bool:
    """Whether the change is one that can be seen: if not, the two make no pair of a better and a worse one."""
    return amount(before, after) >= LEAST


def degrade(image: Tensor, kind: str, severity: float, rng: np.random.Generator, other: Tensor | None = None) -> Tensor:
    """The image with a damage; see `graded`, which also says how strong it is."""
    return graded(image, kind, severity, rng, other)[0]


def graded(
    image: Tensor,
    kind: str,
    severity: float,
    rng: np.random.Generator,
    other: Tensor | None = None,
    strength: float | None = None,
) -> tuple[Tensor, float]:
    """The image with a damage, and the strength that was found to come to the severity.

    Args:
        image: [3, H, W], values 0..1, sides at least 16. Where its channels are equal, the result's are.
        kind: one of `DEGRADATIONS`.
        severity: 0 (no damage) to 1; the amount of change is `severity * FULL`, within a tenth where the kind allows.
        rng: decides everything random. The same state gives the same damage, more of it at a higher severity.
        other: another image of the same shape, for the kind "stitched".
        strength: what was found before for the same arguments; nothing is searched then.

    Returns:
        [3, H, W], values 0..1, and the strength, 0 to 1.

    Raises:
        ValueError: severity is out of range, or "stitched" was given no other image.
    """
    if not 0 <= severity <= 1:
        raise ValueError(f"severity {severity} is not between 0 and 1")
    if kind == "stitched" and other is None:
        raise ValueError("the kind 'stitched' needs another image")
    if severity == 0:
        return image, 0.0
    is_grey = bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
    if other is not None and is_grey:
        is_grey = bool((other[0] == other[1]).all() and (other[0] == other[2]).all())
    picture = image[:1] if is_grey else image
    second = other if other is None or not is_grey else other[:1]

    def damaged(strength: float) -> Tensor:
        own = copy.deepcopy(rng)  # every strength draws the same
        damage = DEGRADATIONS[kind].damage
        if damage is not None:
            return damage(picture, strength, own).clamp(0, 1)
        assert second is not None
        return stitched(picture, strength, own, second).clamp(0, 1)

    if strength is None:
        found, strength = _search(picture, damaged, severity * FULL)
    else:
        found = damaged(strength)
    return found.expand_as(image).contiguous(), strength


def _search(picture: Tensor, damaged: Callable[[float], Tensor], wanted: float) -> tuple[Tensor, float]:
    """The damaged picture whose amount of change is closest to `wanted`, and its strength.

    False position on a logarithmic scale.
    """
    best, chosen = damaged(1.0), 1.0
    low, high = (0.0, 0.0), (1.0, amount(picture, best))
    if high[1] <= wanted * (1 + _TOLERANCE):
        return best, chosen
    error = high[1] / wanted
    strength = 0.35  # most kinds reach half of what they can before a third of their strength
    for attempt in range(_TRIES):
        trial = damaged(strength)
        reached = max(amount(picture, trial), 1e-6)
        ratio = max(reached / wanted, wanted / reached)
        if ratio < error:
            best, chosen, error = trial, strength, ratio
        if ratio <= 1 + _TOLERANCE:
            break
        low, high = ((strength, reached), high) if reached < wanted else (low, (strength, reached))
        if low[1] == 0:  # below all that was tried: as if the amount grew with the power 1.3 of the strength
            strength *= (wanted / reached) ** 0.77
            continue
        share = np.log(wanted / low[1]) / max(np.log(high[1] / low[1]), 1e-6)
        # every third step halves the bracket: amounts of kinds that change in steps are no straight line
        share = 0.5 if attempt % 3 == 2 else float(np.clip(share, 0.05, 0.95))
        strength = float(low[0] * (high[0] / low[0]) ** share)
    return best, chosen


def _grey(picture: Tensor) -> Tensor:
    if picture.shape[0] == 1:
        return picture[0]
    return torch.tensordot(torch.tensor(_LUMA), picture, dims=1)
