"""What a training step computes in, by the card's compute capability, and the loss scale that float16 needs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from medsyn.config import DeviceSection
from medsyn.stage import NoProgress

_FIRST, _GROW_AFTER = 2.0**16, 2000  # as torch.cuda.amp.GradScaler has them

logger = logging.getLogger(__name__)


def training_dtype(section: DeviceSection, device: torch.device) -> torch.dtype:
    """bfloat16 from sm_80 on, float16 on sm_70 to sm_75, else float32; weights and their gradients always are float32.

    Half precision is not faster below sm_70. bfloat16 has float32's range, and so needs no loss scale.
    """
    if device.type != "cuda" or section.precision == "float32":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) and section.precision != "bfloat16" else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """The context of a forward pass."""
    on = dtype != torch.float32
    return torch.autocast(device.type, dtype if on else torch.bfloat16, enabled=on)


class LossScale:
    """A dynamic loss scale (Micikevicius et al., ICLR 2018): small gradients must not vanish in float16.

    The rule and the constants are those of torch.cuda.amp.GradScaler: half of it and no step where a gradient
    overflows, twice as much after 2,000 steps without. Its state is two tensors of the checkpoint, so that a resumed
    run scales as one that was not interrupted; powers of two change no bit of a gradient. Off, it does nothing.
    """

    def __init__(self, on: bool) -> None:
        self._on = on
        self._scale, self._steps = _FIRST, 0  # of the loss; since it changed

    def scaled(self, loss: Tensor) -> Tensor:
        """What is to be differentiated."""
        return loss * self._scale if self._on else loss

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Give gradients their own size again; before they are clipped."""
        if self._on:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, 1 / self._scale)

    def allows(self, norm: Tensor, step: int) -> bool:
        """Whether the optimizer may make the step whose gradients have this norm; adapts the scale. Waits for a GPU.

        Raises:
            NoProgress: they are not finite at a scale of 1 either.
        """
        if not self._on:
            return True
        if bool(torch.isfinite(norm)):
            self._steps += 1
            if self._steps == _GROW_AFTER:
                self._scale, self._steps = self._scale * 2, 0
            return True
        if self._scale <= 1:
            raise NoProgress(f"gradients are not finite in float16 at step {step}: set device.precision=float32")
        self._scale, self._steps = self._scale / 2, 0
        logger.info(
            "step %d is left out: a gradient overflowed in float16; the loss scale is %g now", step, self._scale
        )
        return False

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name; nothing while it is off."""
        if not self._on:
            return {}
        return {"loss_scale": torch.tensor(self._scale), "loss_scale_steps": torch.tensor(self._steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint; one that was made without a scale leaves the first."""
        if self._on and "loss_scale" in tensors:
            self._scale, self._steps = float(tensors["loss_scale"]), int(tensors["loss_scale_steps"])
