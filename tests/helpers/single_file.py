"""Models in the layout of Stable Diffusion's first release: one file with all weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsyn.models.single_file import PREFIXES, original_names
from medsyn.models.weights import PARTS


def tensors_of(model: Path) -> dict[str, Tensor]:
    """The tensors of a diffusers directory as one file of that layout has them."""
    found: dict[str, Tensor] = {}
    for part in PREFIXES:
        tensors = load_file(model / part / PARTS[part][1])
        tensors.pop("text_model.embeddings.position_ids", None)
        settings = json.loads((model / part / "config.json").read_text())
        names = original_names(part, settings, list(tensors))
        found |= {names[name]: tensor.contiguous() for name, tensor in tensors.items()}
    for name, tensor in found.items():
        if ".mid.attn_1." in name and name.endswith(".weight") and tensor.ndim == 2:  # convolutions of one pixel there
            found[name] = tensor[:, :, None, None].contiguous()
    return found | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def write(model: Path, file: Path) -> Path:
    """The model as one file."""
    save_file(tensors_of(model), file, {"format": "pt"})
    return file
