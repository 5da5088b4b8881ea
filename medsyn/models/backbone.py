"""Frozen image backbones by path: any `transformers.AutoModel` directory of an image model (CLIP, DINOv2, ViT, ResNet).

Sites without a network bring their own directory, with safetensors: nothing is downloaded, and no pickle is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsyn.errors import InputError

_CONFIG, _WEIGHTS, _PREPROCESSOR = "config.json", ("model.safetensors", "model.safetensors.index.json"), "preprocessor"
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean and deviation of its pixels
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone:
    """A frozen network that gives features on a grid. Its weights stay where they are: no scorer saves them."""

    def __init__(self, directory: Path) -> None:
        """Load from a directory.

        Raises:
            InputError: it is missing, is no image model that AutoModel knows, or has no safetensors.
        """
        if reason := problem(directory):
            raise InputError(directory, reason)
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(str(directory), local_files_only=True, use_safetensors=True)
        except MemoryError:
            raise
        except Exception as error:  # whatever the library raises about files that it cannot use
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(directory, f"is not a model that AutoModel can load: {said}") from None
        self._network: nn.Module = getattr(model, "vision_model", model).eval().requires_grad_(False)
        settings = getattr(model.config, "vision_config", model.config)
        self._side = _whole(getattr(settings, "image_size", None)) or 224
        self._patch = _whole(getattr(settings, "patch_size", None))
        mean, deviation = _normalisation(directory, str(model.config.model_type))
        self._mean, self._deviation = (torch.tensor(one).view(1, 3, 1, 1) for one in (mean, deviation))
        self._last: tuple[Tensor, Tensor] | None = None
        self.width = self._features(torch.zeros(1, 3, self._side, self._side), directory).shape[1]

    @torch.no_grad()
    def grid(self, pixels: Tensor) -> Tensor:
        """Features [N, width, h, w] of pixels [N, 3, H, W], values 0..1.

        The features of the last pixels are kept: the members of an ensemble ask for the same ones, one after the other.
        """
        if self._last is None or self._last[0] is not pixels:
            self._last = pixels, self._features(pixels)
        return self._last[1]

    def _features(self, pixels: Tensor, directory: Path | None = None) -> Tensor:
        size = (self._side, self._side)
        if pixels.shape[-2:] != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        self._network.to(pixels.device)
        mean, deviation = self._mean.to(pixels.device), self._deviation.to(pixels.device)
        with torch.no_grad():
            try:
                seen: Tensor = self._network(pixel_values=(pixels - mean) / deviation).last_hidden_state
            except (TypeError, AttributeError, ValueError):
                raise InputError(directory or "", "is not a model of images, which takes pixel_values") from None
        if seen.dim() == 4:  # a convolutional network
            return seen
        side = self._side // self._patch if self._patch else 0
        if seen.dim() != 3 or not side or seen.shape[1] < side**2:
            raise InputError(directory or "", f"gives features of shape {tuple(seen.shape)}, not one for every patch")
        return seen[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))  # what stands before is of the whole


def problem(directory: Path) -> str | None:
    """What is wrong with a backbone's directory, by its files alone (without torch's or transformers' import)."""
    if not directory.is_dir():
        return "is not a directory"
    if not (directory / _CONFIG).is_file():
        return f"has no {_CONFIG}; it must be the directory of an image model saved by transformers"
    if not any((directory / name).is_file() for name in _WEIGHTS):
        return f"has no {_WEIGHTS[0]}; save the model with safe_serialization=True"
    return None


def _whole(value: Any) -> int | None:
    """A size that is written as one number, or as two equal ones."""
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    return value if isinstance(value, int) else None


def _normalisation(directory: Path, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels that the network was trained on."""
    try:
        said = json.loads((directory / f"{_PREPROCESSOR}_config.json").read_text())
        mean, deviation = (tuple(map(float, said[name])) for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError):
        return _CLIP if "clip" in kind else _IMAGENET
    return (mean, deviation) if len(mean) == len(deviation) == 3 and all(deviation) else _IMAGENET
