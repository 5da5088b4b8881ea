"""The machine around the process: interpreter, driver, disk, offline flags."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from medsyn.doctor.finding import GIB, Finding

_OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_FREE_DISK_GIB = 20  # one SD v1.5 fine-tune with two checkpoints and its caches


def check_python() -> Iterator[Finding]:
    """The interpreter and the machine."""
    good = sys.version_info[:2] == (3, 11)
    yield Finding(
        "python", f"{platform.python_version()} on {platform.machine()}", "good" if good else "note",
        "" if good else "the pinned stack is for Python 3.11",
    )  # fmt: skip
    yield Finding("processor", f"{os.cpu_count()} cores visible, {len(os.sched_getaffinity(0))} usable")


def _tool_output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def check_driver() -> Iterator[Finding]:
    """nvidia-smi and nvcc, as the specification's sanity checks ask."""
    driver = _tool_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if driver is None:
        yield Finding("driver", "nvidia-smi is absent or fails", "note", "no NVIDIA driver: tasks run on the CPU")
    else:
        yield Finding("driver", driver.splitlines()[0] if driver else "no device")
    compiler = _tool_output("nvcc", "--version")
    yield Finding("nvcc", compiler.splitlines()[-1] if compiler else "absent; not needed to run")


def check_disk() -> Iterator[Finding]:
    """Room where campaigns and temporary files go."""
    for name, path in (("disk here", Path.cwd()), ("disk TMPDIR", Path(os.environ.get("TMPDIR", "/tmp")))):
        if not path.is_dir():
            yield Finding(name, f"{path} does not exist", "bad", "set TMPDIR to an existing directory")
            continue
        free = shutil.disk_usage(path).free / GIB
        enough = free >= _FREE_DISK_GIB
        advice = "" if enough else f"an SD v1.5 fine-tune with two checkpoints wants {_FREE_DISK_GIB} GiB"
        yield Finding(name, f"{free:.1f} GiB free", "good" if enough else "note", advice)


def check_offline() -> Iterator[Finding]:
    """Compute nodes have no internet; these flags turn a long time-out into a clear error."""
    for flag in _OFFLINE_FLAGS:
        value = os.environ.get(flag)
        yield Finding(
            flag,
            value or "unset",
            "good" if value in {"1", "true", "TRUE"} else "note",
            "" if value else "weights are loaded from local files only, whatever this says",
        )
