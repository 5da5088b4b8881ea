"""The machine around the process: interpreter, driver, disk, offline flags."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medsyn.doctor.diagnosis import Diagnosis
from medsyn.text import GIB, gib

_OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_ON = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub and transformers read them, in any case
_FREE_DISK_GIB = 20  # one SD v1.5 fine-tune with two checkpoints and its caches


def check_python() -> Iterator[Diagnosis]:
    """The interpreter and the machine."""
    good = sys.version_info[:2] == (3, 11)
    yield Diagnosis(
        "python", f"{platform.python_version()} on {platform.machine()}", "good" if good else "note",
        "" if good else "the pinned stack is for Python 3.11",
    )  # fmt: skip
    yield Diagnosis("processor", f"{os.cpu_count()} cores visible, {len(os.sched_getaffinity(0))} usable")


def _tool_output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def check_driver() -> Iterator[Diagnosis]:
    """nvidia-smi and nvcc, as the specification's sanity checks ask."""
    driver = _tool_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if driver is None:
        yield Diagnosis("driver", "nvidia-smi is absent or fails", "note", "no NVIDIA driver: tasks run on the CPU")
    else:
        yield Diagnosis("driver", driver.splitlines()[0] if driver else "no device")
    compiler = _tool_output("nvcc", "--version")
    yield Diagnosis("nvcc", compiler.splitlines()[-1] if compiler else "absent; not needed to run")


def check_disk() -> Iterator[Diagnosis]:
    """Free space for campaigns and temporary files; Python ignores a TMPDIR that it cannot write to."""
    wanted, temporary = os.environ.get("TMPDIR"), Path(tempfile.gettempdir())
    if wanted and not (Path(wanted).is_dir() and temporary.samefile(wanted)):
        advice = f"temporary files go to {temporary}: set TMPDIR to an existing, writable directory"
        yield Diagnosis("TMPDIR", f"{wanted} cannot be used", "note", advice)
    for name, path in (("disk here", Path.cwd()), ("disk TMPDIR", temporary)):
        free = shutil.disk_usage(path).free
        enough = free >= _FREE_DISK_GIB * GIB
        advice = "" if enough else f"an SD v1.5 fine-tune with two checkpoints needs {_FREE_DISK_GIB} GiB"
        yield Diagnosis(name, f"{gib(free)} GiB free", "good" if enough else "note", advice)


def check_offline() -> Iterator[Diagnosis]:
    """Compute nodes have no internet; these flags turn a long time-out into a clear error."""
    for flag in _OFFLINE_FLAGS:
        value = os.environ.get(flag)
        if value and value.upper() in _ON:
            yield Diagnosis(flag, value)
            continue
        advice = "weights are loaded from local files only, whatever its value"
        if value:
            advice += "; it is not on, so other code may wait for the network: set it to 1"
        yield Diagnosis(flag, value or "unset", "note", advice)
