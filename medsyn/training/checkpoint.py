"""Checkpoints: directories that appear whole, can prove that they are intact, and record what they depend on.

    step-000000200/state.safetensors   every tensor of the run: weights, optimizer, averages
    step-000000200/manifest.json       step, size and SHA-256 of the tensors, and what the run depended on

A directory is written beside its final name and renamed once it is on disk; only then are older ones removed.
Reading takes the newest intact one. A run never starts over silently: if checkpoints exist but none can be read, it
stops. Only safetensors and JSON are read, so a checkpoint cannot run code.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medsyn import disk
from medsyn.config import flatten
from medsyn.errors import InputError
from medsyn.stage import NoProgress
from medsyn.training.tensor_file import write_tensors

STATE = "state.safetensors"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{9,})")

logger = logging.getLogger(__name__)


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    provenance: dict[str, Any],
    keep: int,
    conditions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Save the state after `step` steps as `directory`/step-…, then remove all but the newest `keep`.

    Args:
        directory: holds the checkpoints of one run.
        step: number of completed steps.
        tensors: everything the run needs to continue; on any device.
        provenance: JSON-ready mapping of what the state depends on (settings, data, weights).
        keep: how many checkpoints to keep, including this one.
        conditions: what else is on record of the steps so far; it may change from step to step.

    Raises:
        OSError: it could not be written (disk full, …); earlier checkpoints are untouched.
    """
    path = path_of(directory, step)
    with disk.atomic_directory(path) as temporary:
        size, sha256 = write_tensors(temporary / STATE, tensors)
        body = {"step": step, "size": size, "sha256": sha256, "facts": provenance, "conditions": list(conditions)}
        disk.write_json(temporary / MANIFEST, {**body, "fingerprint": disk.fingerprint(body)})
        if path.exists():  # one that `load_newest` had to skip: a run does not save a step twice
            discard(path)
    found = _found(directory)
    later = [other for number, other in found if number > step]  # torn: this run continued from an older one
    for other in later + [other for number, other in found if number <= step][keep:]:
        discard(other)


def load_newest(directory: Path, provenance: dict[str, Any]) -> tuple[int, dict[str, Tensor]] | None:
    """The step and the tensors (on the CPU) of the newest intact checkpoint; None only if there is none at all.

    Torn or corrupt ones are skipped with a warning. The tensors are views into the file: copy what you keep.

    Raises:
        InputError: it was made with different settings; the message names the differences.
        NoProgress: there are checkpoints but none is intact.
    """
    found = _found(directory)
    for step, path in found:
        try:
            manifest = _read_manifest(path, step)
        except (OSError, ValueError) as error:
            logger.warning("skipping checkpoint %s: %s", path, error)
            continue
        refuse_mismatch(path, manifest["facts"], provenance)
        try:
            return step, _read_tensors(path / STATE, manifest)
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("skipping checkpoint %s: %s", path, error)
    if found:
        raise NoProgress(f"none of the {len(found)} checkpoints in {directory} is intact; delete them to start over")
    return None


def sha256_of(directory: Path, step: int) -> str:
    """The hash by which the state after `step` steps is named to other processes."""
    return str(_read_manifest(path_of(directory, step), step)["sha256"])


def load_exactly(directory: Path, step: int, sha256: str) -> dict[str, Tensor]:
    """The tensors of the one checkpoint that another process has loaded, as `load_newest` returns them.

    Raises:
        ValueError: it is not the same any more.
    """
    path = path_of(directory, step)
    return _read_tensors(path / STATE, _read_manifest(path, step) | {"sha256": sha256})


def conditions_of(directory: Path, step: int) -> list[dict[str, Any]]:
    """The conditions that were saved with the state after `step` steps; none in a checkpoint of before there were."""
    return list(_read_manifest(path_of(directory, step), step).get("conditions", []))


def path_of(directory: Path, step: int) -> Path:
    """The checkpoint after `step` steps."""
    return directory / f"step-{step:09d}"


def newest_step(directory: Path) -> int | None:
    """Of the newest checkpoint, intact or not."""
    return next((step for step, _ in _found(directory)), None)


def keep_newest(directory: Path) -> None:
    """Remove all checkpoints but the newest."""
    for _, path in _found(directory)[1:]:
        discard(path)


def refuse_mismatch(source: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `InputError` naming every difference between what `source` was made from and what holds now."""
    before, after = dict(flatten(then)), dict(flatten(json.loads(json.dumps(now))))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if keys:
        changes = "; ".join(f"{key} was {before.get(key)!r} and is {after.get(key)!r}" for key in keys)
        reason = f"was made with different settings: {changes}. Restore them, or start a campaign with another name"
        raise InputError(source, reason, key=", ".join(keys))


def saved_steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, intact or not, newest first."""
    return [step for step, _ in _found(directory)]


def _found(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything named like a checkpoint, newest first."""
    names: Iterable[Path] = directory.iterdir() if directory.is_dir() else ()
    matches = [(match, path) for path in names if (match := _NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in matches), reverse=True)


def _read_manifest(path: Path, step: int) -> dict[str, Any]:
    manifest = disk.read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("step") != step:
        raise ValueError("its manifest is for a different step")
    if manifest.pop("fingerprint", None) != disk.fingerprint(manifest):
        raise ValueError("its manifest has been altered")
    return manifest


def _read_tensors(path: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    if path.stat().st_size != manifest["size"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, but {manifest['size']} were written")
    if disk.sha256_file(path) != manifest["sha256"]:
        raise ValueError(f"{path.name} does not match its SHA-256")
    return load_file(path, device="cpu")


def discard(path: Path) -> None:
    """Remove a directory so that a kill halfway leaves no partial one under its name."""
    aside = disk.temporary_sibling(path.with_name(f"{path.name}.old"))
    disk.remove(aside)
    path.rename(aside)
    disk.remove(aside)
