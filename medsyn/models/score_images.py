"""Scores of images that are in memory together; what else is there changes no score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medsyn.models.policy import Policy
from medsyn.models.scores import Scores
from medsyn.models.selector import Selector


def to_pixels(pictures: Tensor, device: torch.device) -> Tensor:
    """What scorers take, float32 [N, 3, H, W] in 0..1, of pictures as they are written, uint8 [N, H, W, 1 or 3]."""
    pixels = pictures.to(device).permute(0, 3, 1, 2).float() / 255
    return pixels.expand(-1, 3, -1, -1).contiguous()  # another layout has other last bits


def selector_scores(selector: Selector, pixels: Tensor, modality: str | None) -> Scores:
    """What the Selector says of pixels [N, 3, H, W] of one modality."""
    return _in_parts(lambda part: selector.score(pixels[part], modality), pixels)


def policy_scores(policy: Policy, pixels: Tensor, pooled: Tensor, modality: str | None) -> Scores:
    """What the Policy says of pixels [N, 3, H, W] of one modality under pooled text features [N, D]."""
    return _in_parts(lambda part: policy.score(pixels[part], pooled[part], modality), pixels)


def _in_parts(score: Callable[[slice], Scores], pixels: Tensor) -> Scores:
    """With some CPUs' matrix libraries a row's last bits depend on the other rows; alone it is always the same."""
    size = 1 if pixels.device.type == "cpu" else len(pixels)
    return _joined([score(slice(start, start + size)) for start in range(0, len(pixels), size)])


def _joined(parts: Sequence[Scores]) -> Scores:
    columns = ([getattr(part, name) for part in parts] for name in ("score", "spread", "unfamiliar"))
    return Scores(*(torch.cat(column) for column in columns))
