"""Locate pretrained weights, report missing parts and fingerprint them, without importing torch.

A source is `embedded` (the tiny model inside the package), a diffusers directory, or a hub id that has been downloaded
into the local cache. Compute nodes have no internet access, so `plan` and `submit` check it before queueing anything.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsyn.config import EMBEDDED
from medsyn.disk import fingerprint, sha256_file
from medsyn.errors import InputError, Problem

SCORER_WEIGHTS = "model.safetensors"  # of a saved Selector or Policy

_PARTS: dict[str, tuple[str, ...]] = {
    "tokenizer": ("vocab.json", "merges.txt"),
    "text_encoder": ("config.json", "model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "unet": ("config.json", "diffusion_pytorch_model.safetensors"),
    "scheduler": ("scheduler_config.json",),
}
KEY = "model_paths.stable_diffusion"
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE")  # where to look for weights named by a hub id


def embedded_directory() -> Path:
    """The diffusers directory of the tiny model that ships with medsyn."""
    return Path(__file__).parent / "embedded"


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def _cached_snapshot(hub_id: str) -> Path | None:
    repository = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    snapshot = repository / "snapshots" / reference.read_text().strip()
    return snapshot if snapshot.is_dir() else None


def locate(source: str) -> Path | None:
    """The directory that `source` stands for, or None if it is not on this machine."""
    if source == EMBEDDED:
        return embedded_directory()
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    return _cached_snapshot(source)


def folders(source: str) -> set[Path]:
    """The directories that hold the files of `source`; none for the embedded model and for missing weights.

    A hub snapshot consists of links into other directories of its repository, so the repository is returned; for a
    directory with links, the directories of their targets are included.
    """
    directory = locate(source)
    if directory is None or source == EMBEDDED:
        return set()
    if directory.is_relative_to(_hub_cache()):
        return {directory.parents[1]}
    directory = directory.absolute()
    return {directory, *(path.resolve().parent for path in directory.rglob("*") if path.is_symlink())}


def missing(source: str) -> list[Problem]:
    """Everything that keeps `source` from being loaded offline, one problem per file."""
    directory = locate(source)
    if directory is None:
        return [
            Problem(
                source,
                "these weights are not on this machine: give a diffusers directory, or download the hub id once on a "
                "machine with internet access (huggingface-cli download) and share HF_HOME with the compute nodes",
                key=KEY,
            )
        ]
    problems = []
    for part, names in _PARTS.items():
        for name in names:
            if (directory / part / name).is_file():
                continue
            pickled = (directory / part / name).with_suffix(".bin").is_file()
            reason = f"{part}/{name} is missing"
            if pickled:
                reason += "; there is only a .bin, and pickles are not read: convert it to safetensors"
            problems.append(Problem(str(directory), reason, key=KEY))
    return problems


def problems(source: str) -> list[Problem]:
    """Everything that keeps `source` from being used: missing files, or parts that do not fit together."""
    found, base = missing(source), locate(source)
    if found or base is None:
        return found
    try:
        reason = misfit(base, base / "unet")
    except InputError as error:
        return [replace(error.problem, key=KEY)]
    return [Problem(source, reason, key=KEY)] if reason else []


def misfit(base: Path, unet: Path) -> str | None:
    """Why the UNet in `unet` does not fit the text encoder or the VAE of `base`, or None if it does.

    Raises:
        InputError: one of the `config.json` files cannot be read.
    """
    width, channels = _setting(base / "text_encoder", "hidden_size"), _setting(base / "vae", "latent_channels")
    wanted = {"cross_attention_dim": width, "in_channels": channels, "out_channels": channels}
    found = {key: _setting(unet, key) for key in wanted}
    wrong = [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    return f"the UNet does not fit {base}: {', '.join(wrong)}" if wrong else None


def text_features(base: Path) -> int:
    """Size of the text encoder's pooled output; raises InputError if its `config.json` cannot be read."""
    return int(_setting(base / "text_encoder", "hidden_size"))


# the defaults of diffusers and transformers for keys that a config.json lacks
_DEFAULTS = {"hidden_size": 512, "latent_channels": 4, "cross_attention_dim": 1280, "in_channels": 4, "out_channels": 4}


def _setting(part: Path, key: str) -> Any:
    file = part / "config.json"
    try:
        return json.loads(file.read_bytes()).get(key, _DEFAULTS[key])
    except (OSError, ValueError, AttributeError):
        raise InputError(file, "is not a readable model configuration") from None


_HASHED_WHOLE = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@functools.lru_cache(maxsize=32)
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
    """A hash of a file's content: its SHA-256, or above 64 MiB that of evenly spread samples and the size.

    Hashing all of SD v1.5 takes minutes on a login node. Different weights differ everywhere, so samples tell them
    apart; a copy of the same weights has the same hash.
    """
    if size <= _HASHED_WHOLE:
        return sha256_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for sample in range(_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def weights_fingerprint(source: str) -> str:
    """A fingerprint that changes whenever the weights or the configuration of `source` change."""
    directory = locate(source)
    if directory is None:
        return fingerprint({"absent": source})
    digests = {}
    for part, names in _PARTS.items():
        for name in names:
            path = directory / part / name
            if path.is_file():
                status = path.stat()
                digests[f"{part}/{name}"] = _file_digest(path.resolve(), status.st_size, status.st_mtime_ns)
    return fingerprint(digests)


def model_fingerprint(source: str, unet_from: Path | None = None) -> str:
    """Fingerprint of the weights in use: those of `source`, with the fine-tuned `unet_from`/unet if given."""
    base = weights_fingerprint(source)
    if unet_from is None:
        return base
    return fingerprint([base, sha256_file(unet_from / "unet" / "diffusion_pytorch_model.safetensors")])


def scheduler_config(source: str) -> dict[str, object]:
    """The noise schedule that a model was trained with."""
    directory = locate(source)
    if directory is None:
        raise FileNotFoundError(source)
    loaded: dict[str, object] = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    return loaded
