"""Where pretrained weights are, what is missing of them, and their fingerprint; without importing torch.

A source is `embedded` (the tiny model inside the package), a diffusers directory, or a hub id that has been downloaded
into the local cache. Compute nodes have no internet, so `plan` and `submit` look here before anything is queued.
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
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE")  # where weights that are named by a hub id are looked for


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
    """The directory that `source` stands for, or None when it is not on this machine."""
    if source == EMBEDDED:
        return embedded_directory()
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    return _cached_snapshot(source)


def folders(source: str) -> set[Path]:
    """The folders that the files of `source` are in; none for the embedded model and for what is not there.

    A hub's snapshot is links into the repository's other folders, so it is the repository; a directory of links has
    the folders of their targets besides.
    """
    directory = locate(source)
    if directory is None or source == EMBEDDED:
        return set()
    if directory.is_relative_to(_hub_cache()):
        return {directory.parents[1]}
    directory = directory.absolute()
    return {directory, *(path.resolve().parent for path in directory.rglob("*") if path.is_symlink())}


def missing(source: str) -> list[Problem]:
    """Everything that keeps `source` from being loaded offline, named file by file."""
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
    """Everything that keeps `source` from making images: what is missing, or parts that do not belong together."""
    found, base = missing(source), locate(source)
    if found or base is None:
        return found
    try:
        reason = misfit(base, base / "unet")
    except InputError as error:
        return [replace(error.problem, key=KEY)]
    return [Problem(source, reason, key=KEY)] if reason else []


def misfit(base: Path, unet: Path) -> str | None:
    """How the UNet in the directory `unet` was made for another text encoder or autoencoder than `base`'s, or None.

    Raises:
        InputError: one of the `config.json` is none.
    """
    width, channels = _setting(base / "text_encoder", "hidden_size"), _setting(base / "vae", "latent_channels")
    wanted = {"cross_attention_dim": width, "in_channels": channels, "out_channels": channels}
    found = {key: _setting(unet, key) for key in wanted}
    wrong = [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    return f"the UNet does not fit {base}: {', '.join(wrong)}" if wrong else None


def text_features(base: Path) -> int:
    """Numbers in the text encoder's pooled output; raises InputError if its `config.json` is none."""
    return int(_setting(base / "text_encoder", "hidden_size"))


# what diffusers and transformers take where a config.json does not say
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
def _file_fact(path: Path, size: int, modified_ns: int) -> str:
    """What is in a file: its SHA-256, or for gigabytes that of evenly spread samples and the size.

    Hashing SD v1.5 whole takes minutes on a login node. Other weights differ all over, so samples tell them apart; the
    same weights copied elsewhere have the same fact.
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
    """A fingerprint that changes when the weights or the configuration behind `source` change."""
    directory = locate(source)
    if directory is None:
        return fingerprint({"absent": source})
    facts = {}
    for part, names in _PARTS.items():
        for name in names:
            path = directory / part / name
            if path.is_file():
                status = path.stat()
                facts[f"{part}/{name}"] = _file_fact(path.resolve(), status.st_size, status.st_mtime_ns)
    return fingerprint(facts)


def model_fingerprint(source: str, unet_from: Path | None = None) -> str:
    """Fingerprint of the weights in use: those of `source`, with the fine-tuned `unet_from`/unet if given."""
    base = weights_fingerprint(source)
    if unet_from is None:
        return base
    return fingerprint([base, sha256_file(unet_from / "unet" / "diffusion_pytorch_model.safetensors")])


def scheduler_config(source: str) -> dict[str, object]:
    """The noise schedule a model was trained with."""
    directory = locate(source)
    if directory is None:
        raise FileNotFoundError(source)
    loaded: dict[str, object] = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    return loaded
