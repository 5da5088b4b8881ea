"""What makes a UNet a whole pipeline: a directory that diffusers' `StableDiffusionPipeline.from_pretrained` reads.

The other parts are those of the model that the UNet was made from. Large files are hard links to it: they take no
space, and stay when the model is moved or deleted, or is bound elsewhere in a container, where a symbolic link would
lead nowhere. A file system that cannot link (usually because the model is on another one) gets a copy.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers

from medsyn import disk
from medsyn.models import model_folder
from medsyn.models.weights import PARTS

_WORTH_A_LINK = 16 << 20  # bytes; a copy of less costs nothing, and can be edited alone


def add_parts(base: Path, directory: Path) -> None:
    """Put all parts of the model `base` but its UNet into `directory`, which has a float32 UNet, and the index.

    A safety checker is left out: it judges photographs. Pickles and variants in other precisions are, too.
    """
    for part in PARTS:
        if part != "unet":
            (directory / part).mkdir()
            for file in _files(base / part):
                link_or_copy(file, directory / part / file.name)
    load_as_float32(directory / "text_encoder")
    _limit_length(directory)
    settings = model_folder.scheduler_config(str(directory))
    write_index(directory, str(settings.get("_class_name")))


def _files(part: Path) -> list[Path]:
    """The files of a part that are read; a tokenizer may have more of them than it needs."""
    if part.name != "tokenizer":
        return [part / name for name in PARTS[part.name]]
    return sorted(file for file in part.iterdir() if file.is_file() and file.suffix in (".json", ".txt"))


def link_or_copy(file: Path, to: Path) -> None:
    """`to` has the content of `file`, for good: a hub cache's files are links to others, and the cache may go."""
    source = file.resolve(strict=True)
    if source.stat().st_size >= _WORTH_A_LINK:
        with suppress(OSError):  # another file system, one without links, or a file that may only be read
            os.link(source, to)
            return
    # shutil.copyfile names the source where there is no room
    with source.open("rb") as read, disk.writing(to), to.open("wb") as written:
        shutil.copyfileobj(read, written, 1 << 20)


def _limit_length(directory: Path) -> None:
    """Give the tokenizer the text encoder's length: one without a configuration has no limit, and pads to none."""
    path = directory / "tokenizer" / "tokenizer_config.json"
    settings: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer"}
    if path.is_file():
        settings = json.loads(path.read_text())
    positions = model_folder.text_positions(directory)
    if (settings.get("model_max_length") or math.inf) > positions:
        _write(path, settings | {"model_max_length": positions})


def load_as_float32(text_encoder: Path) -> None:
    """Have libraries load a text encoder in the UNet's precision, whatever precision its file has.

    transformers from version 5 on takes the one that `config.json` names, and diffusers float32: the two do not fit.
    """
    path = text_encoder / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("dtype", None)  # the key's name in later versions, which still read the earlier one
    _write(path, settings | {"torch_dtype": "float32"})


def write_index(directory: Path, scheduler: str = "DDIMScheduler") -> None:
    """Write `model_index.json`, which names the class of every part; `scheduler` if diffusers has it, else DDIM."""
    _write(
        directory / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler if hasattr(diffusers, scheduler) else "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
