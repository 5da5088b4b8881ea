"""A summary of a stage's done markers, one line each, so that counting images need not read ten thousand markers.

A hint beside the markers, which stay the truth: a task whose line is lost (two nodes appending at once over NFS, a
full disk) or of another fingerprint is looked up in its marker.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.stage import CampaignDirectory


def _path(directory: CampaignDirectory, stage: str) -> Path:
    return directory.done(stage, "any").parent.with_name("done.jsonl")


def append(directory: CampaignDirectory, stage: str, name: str, marker: Mapping[str, Any]) -> None:
    """Add the content of a task's new marker, without its list of outputs."""
    line = {"task": name, **{key: value for key, value in marker.items() if key != "outputs"}}
    with suppress(OSError):  # the marker is there, so the task is done
        disk.append_jsonl(_path(directory, stage), line)


def read(directory: CampaignDirectory, stage: str) -> dict[str, dict[str, Any]]:
    """The newest line of each task of a stage."""
    return {line["task"]: line for line in disk.read_jsonl(_path(directory, stage)) if "task" in line}


def names(folder: Path) -> set[str]:
    """The tasks that have a file in a directory of `tasks/<stage>/`: one listing, no file is read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name.rpartition(".")[0] for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return set()


def count_images(manifests: Iterable[tuple[str, Path]]) -> dict[str, dict[str, int]]:
    """Images made, accepted and unfamiliar, and their candidates, by mode; of (mode, manifest of a block) pairs."""
    counts: dict[str, dict[str, int]] = {}
    for mode, path in manifests:
        mine = counts.setdefault(mode, {"made": 0, "accepted": 0, "candidates": 0, "unfamiliar": 0})
        for line in path.read_bytes().splitlines():
            record = disk.from_json(line)
            mine["made"] += record.get("file") is not None
            mine["accepted"] += bool(record.get("accepted"))
            mine["unfamiliar"] += record.get("file") is not None and record.get("unfamiliar") is True
            mine["candidates"] += record.get("attempts") or 0
    return counts
