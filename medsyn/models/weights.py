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
from medsyn.disk import fingerprint, read_json, sha256_file

SCORER_CONFIG = "config.json"
SCORER_WEIGHTS = "model.safetensors"  # of a saved Selector or Policy
FACTS = "facts.json"  # beside weights that medsyn has trained: what they depend on

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


def content_digest(path: Path) -> str:
    """A hash of a file's content, of a large one by samples (see `_file_digest`); raises OSError."""
    status = path.stat()
    return _file_digest(path.resolve(), status.st_size, status.st_mtime_ns)


def weights_fingerprint(source: str) -> str:
    """A fingerprint that changes whenever the weights or the configuration of `source` change."""
    directory = locate(source)
    if directory is None:
        return fingerprint({"absent": source})
    paths = {f"{part}/{name}": directory / part / name for part, names in PARTS.items() for name in names}
    return fingerprint({name: content_digest(path) for name, path in paths.items() if path.is_file()})


def model_fingerprint(source: str, unet_sha256: str | None = None, unet_from: Path | None = None) -> str:
    """Fingerprint of the model in use.

    Args:
        source: the base model.
        unet_sha256: of the fine-tuned UNet's weights, if there is one.
        unet_from: the folder of that UNet: a noise schedule in it counts if it is not that of `source`.
    """
    base = weights_fingerprint(source)
    if unet_sha256 is None:
        return base
    return fingerprint([base, unet_sha256, *_other_schedule(locate(source), unet_from)])


def _other_schedule(base: Path | None, unet_from: Path | None) -> list[str]:
    if base is None or unet_from is None or not (unet_from / SCHEDULE).is_file():
        return []
    own = unet_from / SCHEDULE
    return [] if own.read_bytes() == (base / SCHEDULE).read_bytes() else [sha256_file(own)]


def unet_sha256(directory: Path | None) -> str | None:
    """Hex SHA-256 of the weights of `directory`/unet; None for no directory."""
    return None if directory is None else weights_sha256(directory / "unet" / UNET_WEIGHTS)


def weights_sha256(path: Path) -> str:
    """Hex SHA-256 of all bytes of a file; a process reads it again only if it has changed."""
    status = path.stat()
    # the change time too: a program can set back the modification time, not this one
    return _sha256(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=32)
def _sha256(path: Path, *state: int) -> str:
    return sha256_file(path)


def recorded_sha256(path: Path, marker: Path, root: Path) -> str | None:
    """Hex SHA-256 of a file as its task's done marker has it, which is read instead of the file.

    None unless the file has the recorded size and both its times are before the marker's, so that it has been neither
    replaced nor touched since the task hashed it. Times of one file system are compared with one another, never with
    a clock of this machine.

    Args:
        path: of the file.
        marker: of the task that made it.
        root: the campaign's directory, which the marker's paths are relative to.
    """
    try:
        status = path.stat()
        if max(status.st_mtime_ns, status.st_ctime_ns) >= marker.stat().st_mtime_ns:
            return None
        name = str(path.relative_to(root))
        outputs = {output["path"]: (output["size"], output["sha256"]) for output in read_json(marker)["outputs"]}
        size, sha256 = outputs[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sha256 if size == status.st_size and isinstance(sha256, str) else None
