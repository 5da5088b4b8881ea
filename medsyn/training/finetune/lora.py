"""Low-rank adapters (LoRA; Hu et al., ICLR 2022) on the linear layers of a UNet, in plain torch.

A layer's output is W x + scale * up(down(x)); W stays as it is, `up` begins at 0, so that training begins at the base
model. Merged, W + scale * up down, the UNet is an ordinary one; switched off, it is the base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medsyn.config import LoraSection
from medsyn.errors import InputProblems
from medsyn.models.lora_targets import adapted_layers, misfits
from medsyn.seeds import seed
from medsyn.training.schedule import RandomKey

ADAPTER_WEIGHTS = "pytorch_lora_weights.safetensors"  # where diffusers' `load_lora_weights` looks
# of the adapter in its layer: its weights are `<layer>.lora.down.weight` and `.up.weight`, as diffusers'
_NAME = "lora"


class Adapter(nn.Module):
    """What is added to the output of one linear layer."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        place = {"bias": False, "device": layer.weight.device, "dtype": torch.float32}
        self.down: nn.Linear = nn.utils.skip_init(nn.Linear, layer.in_features, rank, **place)
        self.up: nn.Linear = nn.utils.skip_init(nn.Linear, rank, layer.out_features, **place)
        self.scale, self.enabled = scale, True

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., outputs] of [..., inputs]."""
        added: Tensor = self.up(self.down(inputs))
        return added if self.scale == 1 else added * self.scale

    @torch.no_grad()
    def initialise(self, key: RandomKey) -> None:
        """`down` uniform in +-1 / sqrt(inputs), as peft draws it, and `up` 0."""
        bound = self.down.in_features**-0.5
        drawn = np.random.default_rng(seed(*key)).uniform(-bound, bound, tuple(self.down.weight.shape))
        self.down.weight.copy_(torch.from_numpy(drawn))
        self.up.weight.zero_()


def add_adapters(unet: nn.Module, section: LoraSection, key: RandomKey) -> dict[str, Tensor]:
    """Freeze the UNet and put an adapter on each target; the adapters' weights by name, which are what is trained.

    Args:
        unet: a diffusers UNet.
        section: with a rank.
        key: the first values are a function of it and of the layer's name.

    Raises:
        InputProblems: a target that the UNet has not, or a rank over the width of a layer.
    """
    assert section.rank is not None
    shapes = {name: tuple(value.shape) for name, value in unet.named_parameters()}
    if problems := misfits(shapes, section):
        raise InputProblems(problems)
    unet.requires_grad_(False)
    for name in adapted_layers(shapes, section.targets):
        layer = unet.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        adapter = Adapter(layer, section.rank, section.scale)
        adapter.initialise((*key, _NAME, name))
        layer.add_module(_NAME, adapter)
        layer.register_forward_hook(_add)
    return {name: value for name, value in unet.named_parameters() if value.requires_grad}


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    adapter = getattr(layer, _NAME)
    return output + adapter(inputs[0]) if adapter.enabled else None


@contextmanager
def without_adapters(unet: nn.Module) -> Iterator[None]:
    """The base model for as long as it lasts: the reference of an alignment, without a second UNet."""
    adapters = [module for module in unet.modules() if isinstance(module, Adapter)]
    before = [adapter.enabled for adapter in adapters]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter, enabled in zip(adapters, before, strict=True):
            adapter.enabled = enabled


def _pairs(unet: nn.Module, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, `down` [rank, inputs], `up` [outputs, rank] with the scale in it), with `values` for what they name."""
    for name, module in unet.named_modules():
        if isinstance(module, Adapter):
            down, up = (
                values.get(f"{name}.{which}.weight", getattr(module, which).weight).detach().cpu()
                for which in ("down", "up")
            )
            yield name.removesuffix(f".{_NAME}"), down, module.scale * up


@torch.no_grad()
def merged(unet: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an ordinary UNet, on the CPU.

    Args:
        unet: with adapters, or without.
        values: in place of the UNet's own, by name: a moving average.
    """
    own = {name: value for name, value in unet.state_dict().items() if f".{_NAME}." not in name}
    tensors = {name: values.get(name, value).detach().cpu() for name, value in own.items()}
    for layer, down, up in _pairs(unet, values):
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] + up @ down
    return tensors


def save_adapter(unet: nn.Module, values: Mapping[str, Tensor], directory: Path) -> None:
    """Write the adapters of a UNet, if it has any, as a file in `directory` that diffusers' `load_lora_weights` reads.

    The scale is in the weights: diffusers of before 0.36 loads such a file at scale 1, whatever alpha was.
    """
    tensors: dict[str, Tensor] = {}
    for layer, down, up in _pairs(unet, values):
        tensors[f"unet.{layer}.lora.down.weight"] = down.contiguous()
        tensors[f"unet.{layer}.lora.up.weight"] = up.contiguous()
    if tensors:
        save_file(tensors, directory / ADAPTER_WEIGHTS, {"format": "pt"})
