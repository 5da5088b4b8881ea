"""The losses: a signed weight on the ordinary denoising loss, with a reference that keeps the model in place.

All of them need only the forward process: no gradient passes through sampling, and any sampler will do. Each function
takes what is predicted now, what the model predicted before the round, and what is right, and returns the loss of
each unit (a candidate, or a pair) in the scale of a denoising loss, so that real images beside it count as
`align.real_share` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP = 0.2  # how far the likelihood ratio of AWM may go, as in PPO


@dataclass(frozen=True)
class Rows:
    """N candidates at a noise level each; those of a pair are neighbours, the better one first."""

    predicted: Tensor  # [N, c, h, w]
    reference: Tensor  # [N, c, h, w], what the model predicted before the round
    target: Tensor  # [N, c, h, w]
    weight: Tensor  # [N], of the timestep in the loss (min-SNR)
    advantage: Tensor  # [U], of each unit

    def error(self, prediction: Tensor) -> Tensor:
        """The weighted mean squared error of a prediction, [N]."""
        return (prediction - self.target).square().mean(dim=(1, 2, 3)) * self.weight


Loss = Callable[[Rows, float], Tensor]  # rows and `align.beta` -> [U]


def dpo(rows: Rows, beta: float) -> Tensor:
    """Diffusion-DPO (Wallace et al., CVPR 2024): the better image must gain more, against before, than the worse one.

    -log sigmoid(-beta / 2 ((e_w - e_w0) - (e_l - e_l0))), as in diffusers' script; divided by beta / 4, its gradient
    before the first step is that of e_w - e_l.
    """
    change = rows.error(rows.predicted) - rows.error(rows.reference)
    margin = -beta / 2 * (change[0::2] - change[1::2])
    return -F.logsigmoid(margin) * 4 / beta


def nft(rows: Rows, beta: float) -> Tensor:
    """DiffusionNFT (Zheng et al., 2025): r |v+ - v|^2 + (1 - r) |v- - v|^2 with v+- = v0 +- beta (v_theta - v0).

    r = (1 + advantage) / 2. Divided by beta, so that a small one does not slow it down.
    """
    moved = beta * (rows.predicted - rows.reference)
    good = (1 + rows.advantage) / 2
    towards, away = rows.error(rows.reference + moved), rows.error(rows.reference - moved)
    return (good * towards + (1 - good) * away) / beta


def awm(rows: Rows, beta: float) -> Tensor:
    """Advantage-weighted matching (2025): A times the loss, with a clipped likelihood ratio and a distance to before.

    The ratio is exp of the relative fall of the error: without its limit the error of a bad image would grow for ever.
    """
    before = rows.error(rows.reference).clamp(min=1e-8)
    ratio = torch.exp(1 - rows.error(rows.predicted) / before)
    gain = torch.minimum(ratio * rows.advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * rows.advantage)
    return -before * gain + beta * distance(rows)


def rejection(rows: Rows, beta: float) -> Tensor:
    """Rejection-sampling fine-tuning: the ordinary loss of what passed the filter."""
    return rows.error(rows.predicted)


def distance(rows: Rows) -> Tensor:
    """The weighted mean squared difference to what was predicted before, [N]: the KL divergence up to a factor."""
    return (rows.predicted - rows.reference).square().mean(dim=(1, 2, 3)) * rows.weight


LOSSES: dict[str, Loss] = {"dpo": dpo, "nft": nft, "awm": awm, "rejection": rejection}
