"""Locate pretrained weights and fingerprint them, without importing torch.

A source is `embedded` (the tiny model inside the package), a diffusers directory, or a hub id that has been downloaded
into the local cache. `medsyn.models.model_folder` says what is wrong with one.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from medsyn.config import EMBEDDED
from medsyn.disk import fingerprint, sha256_file

SCORER_WEIGHTS = "model.safetensors"  # of a saved Selector or Policy

PARTS: dict[str, tuple[str, ...]] = {
    "tokenizer": ("vocab.json", "merges.txt"),
    "text_encoder": ("config.json", "model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "unet": ("config.json", "diffusion_pytorch_model.safetensors"),
    "scheduler": ("scheduler_config.json",),
}
UNET_WEIGHTS = PARTS["unet"][1]
SCHEDULE = Path("scheduler") / PARTS["scheduler"][0]
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
    for part, names in PARTS.items():
        for name in names:
            path = directory / part / name
            if path.is_file():
                status = path.stat()
                digests[f"{part}/{name}"] = _file_digest(path.resolve(), status.st_size, status.st_mtime_ns)
    return fingerprint(digests)


def model_fingerprint(source: str, unet_from: Path | None = None) -> str:
    """Fingerprint of the weights in use: those of `source`, with the fine-tuned `unet_from`/unet if given.

    A noise schedule beside that UNet is part of it where it is another one than that of `source`.
    """
    base = weights_fingerprint(source)
    if unet_from is None:
        return base
    unet = sha256_file(unet_from / "unet" / UNET_WEIGHTS)
    return fingerprint([base, unet, *_other_schedule(locate(source), unet_from / SCHEDULE)])


def _other_schedule(base: Path | None, own: Path) -> list[str]:
    if base is None or not own.is_file() or own.read_bytes() == (base / SCHEDULE).read_bytes():
        return []
    return [sha256_file(own)]
