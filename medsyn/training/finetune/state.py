"""Everything that changes from step to step: weights, their average, the optimizer's state."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medsyn.config import FinetuneSection
from medsyn.errors import CONFIGURATION, InputError
from medsyn.models.weights import UNET_WEIGHTS
from medsyn.stage import NoProgress
from medsyn.training.checkpoint import conditions_of, load_newest
from medsyn.training.finetune.average import MovingAverage
from medsyn.training.finetune.lora import add_adapters, merged, save_adapter
from medsyn.training.finetune.precision import LossScale
from medsyn.training.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import RandomKey


@dataclass
class TrainState:
    """A UNet in training."""

    unet: nn.Module
    parameters: dict[str, Tensor]  # what is trained, by its name in the UNet: all of it, or adapters
    optimizer: torch.optim.Optimizer
    loss_sum: Tensor  # of the steps since the last line of the metrics, on the device: reading it would wait for it
    average: MovingAverage | None = None
    dtype: torch.dtype = torch.float32  # of a forward pass
    loss_scale: LossScale = field(default_factory=lambda: LossScale(on=False))

    def tensors(self, step: int) -> dict[str, Tensor]:
        """The whole state after `step` steps, by name; raises NoProgress if the weights are no longer finite."""
        self.require_finite(step)
        flat = {f"unet.{name}": value for name, value in self.parameters.items()}
        if self.average:
            flat |= {f"average.{name}": value for name, value in self.average.values().items()}
        return {
            **flat,
            **optimizer_tensors(self.optimizer, list(self.parameters)),
            "loss_sum": self.loss_sum,
            **self.loss_scale.tensors(),
        }

    def require_finite(self, step: int) -> None:
        """Raise NoProgress if the weights are no longer finite after `step` steps."""
        if not bool(torch.stack([torch.isfinite(value).all() for value in self.parameters.values()]).all()):
            raise NoProgress(f"the weights are not finite after step {step}: lower finetune.learning_rate")

    @contextmanager
    def published_weights(self, step: int) -> Iterator[None]:
        """The weights that would be published after `step` steps, in the UNet for as long as it lasts: the average."""
        average = self.average.after(step) if self.average else {}
        own = {name: self.parameters[name].detach().to("cpu", copy=True) for name in average}
        self._put(average)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def result(self, step: int) -> dict[str, Tensor]:
        """What is to be used of the trained weights after `step` steps: their average, if there is one."""
        return self.average.after(step) if self.average else self.parameters

    def save_unet(self, directory: Path, trained: Mapping[str, Tensor]) -> None:
        """Write `directory`/unet as diffusers does, with these values of what is trained.

        Adapters are merged into it, and beside it once more.
        """
        unet = directory / "unet"
        self.unet.save_config(unet)
        tensors = merged(self.unet, trained)
        save_file({name: value.contiguous() for name, value in tensors.items()}, unet / UNET_WEIGHTS, {"format": "pt"})
        save_adapter(self.unet, trained, directory)

    def resume(self, training: TrainingRun) -> int:
        """Load the newest checkpoint, if there is one; return the number of completed steps."""
        found = load_newest(training.checkpoints, training.provenance)
        if found is None:
            return 0
        step, tensors = found
        self.restore(tensors)
        training.conditions = conditions_of(training.checkpoints, step)
        return step

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        for name, value in self.parameters.items():
            value.copy_(tensors[f"unet.{name}"])
        if self.average:
            self.average.restore({name: tensors[f"average.{name}"] for name in self.parameters})
        restore_optimizer(self.optimizer, list(self.parameters), tensors)
        self.loss_sum.copy_(tensors["loss_sum"])
        self.loss_scale.restore(tensors)


def first_state(
    unet: nn.Module, section: FinetuneSection, key: RandomKey, dtype: torch.dtype = torch.float32
) -> TrainState:
    """Prepare the UNet for training, as configured.

    Args:
        unet: with float32 weights.
        section: how it is trained.
        key: what is drawn for it follows from this.
        dtype: what a forward pass computes in.
    """
    if section.enable_xformers:
        if importlib.util.find_spec("xformers") is None:
            reason = "xformers is not installed; install it, or use false for PyTorch's own memory-efficient attention"
            raise InputError(CONFIGURATION, reason, key="finetune.enable_xformers")
        unet.enable_xformers_memory_efficient_attention()
    if section.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train().requires_grad_(True)
    parameters: dict[str, Tensor] = dict(unet.named_parameters())
    if section.lora.rank is not None:
        parameters = add_adapters(unet, section.lora, key)
    optimizer = make_optimizer(parameters, section, unet.device)
    state = TrainState(unet, parameters, optimizer, torch.zeros((), device=unet.device), dtype=dtype)
    state.loss_scale = LossScale(on=dtype == torch.float16)
    if section.use_ema:
        state.average = MovingAverage(parameters, section.ema_decay, section.ema_every)
    return state
