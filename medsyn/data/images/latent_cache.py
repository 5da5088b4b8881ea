"""What is computed once and read often: latents of images and text features of captions.

A cache is a directory of safetensors shards. An entry's key is a hash of everything it was computed from (the file's
bytes, the resolution, the reader, the weights), so a changed image or model never meets a stale entry. A shard's name
is the hash of its own bytes, so a torn or altered one is detected, dropped and computed again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from medsyn import disk
from medsyn.ahead import ahead
from medsyn.errors import InputError
from medsyn.stage import Control

READER_VERSION = 3  # raise it when `read_image` or `fit_square` give different pixels for the same file
_SHARD_ENTRIES = 256  # the most computed entries that a kill can cost
_SUFFIX = ".safetensors"

Source = TypeVar("Source")
Prepared = TypeVar("Prepared")
logger = logging.getLogger(__name__)


def image_key(
    file_sha256: str, modality: str, volume: int | None, resolution: int, weights: str, allow_synthetic: bool
) -> str:
    """The key of one image's latents. `allow_synthetic` is part of it because it decides which images pass."""
    parts = [file_sha256, modality, volume, resolution, weights, allow_synthetic]
    return disk.fingerprint(["image", READER_VERSION, *parts])


def caption_key(caption: str, weights: str, chunks: int = 1) -> str:
    """The key of one caption's text features, of which the text encoder reads so many chunks."""
    return disk.fingerprint(["caption", caption, weights, *([chunks] if chunks > 1 else [])])


class TensorCache:
    """Named tensors under content keys; read on demand from mapped files, so it may be larger than memory."""

    def __init__(self, directory: Path, dtype: torch.dtype | None = torch.float16) -> None:
        """The cache in `directory`; it keeps tensors as `dtype`, None for as they are."""
        self._directory, self._dtype = disk.make_directory(directory), dtype
        self._shard_of: dict[str, Any] = {}  # entry's key -> open shard
        for path in sorted(directory.glob(f"*{_SUFFIX}")):
            if disk.sha256_file(path) == path.stem:
                self._open(path)
            else:
                logger.warning("cache file %s is damaged; its entries are computed again", path)
                path.unlink(missing_ok=True)

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of

    def read(self, key: str, name: str) -> Tensor:
        """Tensor `name` of entry `key`, on the CPU; a view into a file, not to be written to."""
        tensor: Tensor = self._shard_of[key].get_tensor(f"{key}.{name}")
        return tensor

    def add(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store {key: {name: tensor}} in one new shard, whole or not at all."""
        if not entries:
            return
        content = save(
            {
                f"{key}.{name}": tensor.detach().to("cpu", self._dtype).contiguous()
                for key, tensors in entries.items()
                for name, tensor in tensors.items()
            }
        )
        path = self._directory / f"{hashlib.sha256(content).hexdigest()}{_SUFFIX}"
        disk.write_atomic(path, content)
        self._open(path)

    def fill(
        self,
        wanted: Mapping[str, Source],
        prepare: Callable[[Source], Prepared],
        compute: Callable[[Prepared], Mapping[str, Tensor]],
        control: Control,
        unit: str,
        threads: int = 1,
    ) -> tuple[int, dict[str, InputError]]:
        """Compute the entries of `wanted` that are missing, in its order.

        Args:
            wanted: {key: what an entry is made from}.
            prepare: reads a source, in `threads` threads and ahead of `compute`; may raise `InputError` for one that
                cannot be used, and the others go on.
            compute: makes the entry's tensors from what was read, in the calling thread; may raise the same.
            control: receives progress; on a stop request what has been computed is stored and `Saved` raised.
            unit: what is counted, for the progress.
            threads: that read.

        Returns:
            How many entries were computed, and {key: error} for those that could not be.
        """
        fresh: dict[str, Mapping[str, Tensor]] = {}
        computed, failures = 0, {}
        missing = [(number, key) for number, key in enumerate(wanted) if key not in self]
        for (number, key), prepared in ahead(lambda place: prepare(wanted[place[1]]), missing, threads):
            try:
                fresh[key] = compute(prepared.result())
                computed += 1
            except InputError as error:
                failures[key] = error
            if len(fresh) >= _SHARD_ENTRIES or control.stop_requested:
                self.add(fresh)
                fresh = {}
                control.leave_if_asked()
            control.heartbeat(number + 1, len(wanted), unit, worked=computed + len(failures))
        self.add(fresh)
        return computed, failures

    def _open(self, path: Path) -> None:
        shard = safe_open(path, framework="pt", device="cpu")
        for name in shard.keys():  # noqa: SIM118 (a shard is not a mapping)
            self._shard_of[name.rpartition(".")[0]] = shard


def hash_files(paths: Iterable[Path], memo: Path) -> dict[Path, str]:
    """SHA-256 of every file; '' for one that cannot be read.

    A file whose size and times match `memo` is not read again: on resume a large data set would take longer to hash
    than to train on. The memo names files by hash, because their names may be confidential.

    Args:
        paths: files; repeated ones are hashed once.
        memo: JSON file, read if it exists, and updated.
    """
    try:
        known = dict(disk.read_json(memo))
    except (OSError, ValueError, TypeError):
        known = {}
    entries, hashes = {}, {}
    for path in dict.fromkeys(paths):
        name = disk.fingerprint(str(path))
        try:
            status = path.stat()
            # the change time too: a program can set back the modification time, not this one
            times = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            seen = known.get(name)
            hashes[path] = seen[3] if seen and seen[:3] == times else disk.sha256_file(path)
        except OSError:
            hashes[path] = ""
            continue
        entries[name] = [*times, hashes[path]]
    if entries != known:
        disk.write_json(memo, entries)
    return hashes
