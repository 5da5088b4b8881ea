"""AdamW, plain or with 8-bit state, and its state as named tensors for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medsyn.config import FinetuneSection
from medsyn.errors import CONFIGURATION, InputError

_PREFIX = "optimizer."


def _eight_bit_adam(device: torch.device) -> type[torch.optim.Optimizer]:
    key = "finetune.use_8bit_adam"
    if device.type != "cuda":
        raise InputError(CONFIGURATION, "8-bit Adam needs a CUDA GPU, but this run is on the CPU; use false", key=key)
    try:
        import bitsandbytes  # 6 s to import, and only built for CUDA
    except (ImportError, RuntimeError, OSError) as error:
        reason = f"bitsandbytes cannot be imported ({error}); install medsyn-hpc[bnb], or use false"
        raise InputError(CONFIGURATION, reason, key=key) from None
    optimizer: type[torch.optim.Optimizer] = bitsandbytes.optim.AdamW8bit
    return optimizer


def make_optimizer(
    parameters: Mapping[str, Tensor], section: FinetuneSection, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over `parameters`, in their order; the caller sets the learning rate at every step.

    Raises:
        ValueError: a parameter is not float32; half-precision weights lose small updates.
        InputError: 8-bit Adam is configured but not available here.
    """
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}; trained weights are float32")
    options: dict[str, Any] = {
        "lr": section.learning_rate,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": section.adam_weight_decay,
    }
    if section.use_8bit_adam:
        return _eight_bit_adam(device)(parameters.values(), **options)
    # fused: without it a CUDA step makes temporaries as large as all weights together
    return torch.optim.AdamW(parameters.values(), fused=device.type == "cuda", **options)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The state as tensors `optimizer.<parameter>.<key>`; `names` are the parameters' in the optimizer's order.

    An integer becomes an int64 scalar, a kind of tensor that no optimizer uses itself.
    """
    flat = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            tensor = value.detach() if torch.is_tensor(value) else torch.tensor(int(value))
            flat[f"{_PREFIX}{names[index]}.{key}"] = tensor
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Restore the optimizer state that `optimizer_tensors` flattened; other tensors are ignored."""
    places = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith(_PREFIX):
            name, _, key = full_name.removeprefix(_PREFIX).rpartition(".")
            is_integer = tensor.dtype == torch.int64 and tensor.ndim == 0
            # a copy: loaded tensors are views into a mapped file, which must not outlive the checkpoint's pruning
            state.setdefault(places[name], {})[key] = int(tensor) if is_integer else tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
