"""A UNet whose kernels torch.compile writes: fewer and larger ones, and other last bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medsyn.errors import InputError

# the prediction [N, c, h, w] of rows [N, c, h, w], a timestep [] and text features [N, 77 k, D]
WholeUNet = Callable[[Tensor, Tensor, Tensor], Tensor]
BACKEND = "inductor"
_FURTHEST = 0.05  # from the plain prediction, relative to its size: half precision alone is ten times nearer


def plain(unet: Any) -> WholeUNet:
    """The UNet as it is called."""

    def whole(rows: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        prediction: Tensor = unet(rows, timestep, encoder_hidden_states=hidden).sample
        return prediction

    return whole


def _traceable(unet: Any) -> WholeUNet:
    def whole(rows: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        prediction: Tensor = unet(rows, timestep, encoder_hidden_states=hidden, return_dict=False)[0]
        return prediction

    return whole


def compiled(unet: Any) -> WholeUNet:
    """The UNet, compiled at its first call with each shape: that takes minutes, and its prediction is checked.

    Every size has kernels of its own, so that an image does not depend on which sizes came before. The first call
    raises InputError if the UNet cannot be compiled here, or computes something else then.
    """
    expected = plain(unet)
    compute: WholeUNet = torch.compile(_traceable(unet), backend=BACKEND, dynamic=False, fullgraph=True)
    checked: set[torch.Size] = set()

    def whole(rows: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        if rows.shape in checked:
            return compute(rows, timestep, hidden)
        try:
            prediction = compute(rows, timestep, hidden)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # of a dozen kinds, from Python, Triton and compilers
            raise _unfit(f"the UNet cannot be compiled here ({_reason(error)})") from error
        _check(prediction.float(), expected(rows, timestep, hidden).float())
        checked.add(rows.shape)
        return prediction

    return whole


def _check(found: Tensor, expected: Tensor) -> None:
    """Raise InputError unless the two are alike; what overflows in half precision says nothing."""
    if not bool(expected.isfinite().all()):
        return
    distance = float((found - expected).norm() / expected.norm())
    if not distance <= _FURTHEST:
        raise _unfit(f"the compiled UNet computes something else here ({100 * distance:.2g} % away)")


def _reason(error: BaseException) -> str:
    error = getattr(error, "inner_exception", None) or error  # dynamo's own says only which backend it was
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unfit(reason: str) -> InputError:
    return InputError("configuration", f"{reason}: set it to false", key="device.compile")
