"""The machine around the process: interpreter, memory, limits, driver, container runtimes, disk, offline flags."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medsyn import host_memory
from medsyn.doctor.diagnosis import Diagnosis
from medsyn.text import GIB, gib

_OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_ON = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub and transformers read them, in any case
_MEMORY_GIB = 8  # the processes of one task, and torch's copy of the weights
_OPEN_FILES = 1024  # the default of most systems
_FREE_DISK_GIB = 20  # one SD v1.5 fine-tune with two checkpoints and its caches


def check_python() -> Iterator[Diagnosis]:
    """The interpreter and the machine."""
    good = sys.version_info[:2] == (3, 11)
    yield Diagnosis(
        "python", f"{platform.python_version()} on {platform.machine()}", "good" if good else "note",
        "" if good else "the pinned stack is for Python 3.11",
    )  # fmt: skip
    yield Diagnosis("processor", f"{os.cpu_count()} cores visible, {len(os.sched_getaffinity(0))} usable")


def check_memory() -> Iterator[Diagnosis]:
    """The host's memory, and the limit of the group that this process is in (a job's, a container's)."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (page * os.sysconf(f"SC_{kind}_PAGES") for kind in ("PHYS", "AVPHYS"))
    limit = min([total, *host_memory.limits()])
    limited = f", of which this process may use {gib(limit)} GiB" if limit < total else ""
    enough = limit >= _MEMORY_GIB * GIB
    advice = "" if enough else f"fine-tuning of SD v1.5 needs {_MEMORY_GIB} GiB; the embedded model runs in 2"
    value = f"{gib(total)} GiB{limited}, {gib(free)} GiB unused"
    yield Diagnosis("memory", value, "good" if enough else "note", advice)


def check_limits() -> Iterator[Diagnosis]:
    """What the shell allows: permissions of new files, open files, address space."""
    mask = os.umask(0o077)
    os.umask(mask)
    shared = "the group may read a campaign" if not mask & 0o040 else "only you can read a campaign"
    if mask & 0o700:
        yield Diagnosis("umask", f"{mask:04o}", "bad", "new files cannot be used by their owner: umask 022")
    else:
        yield Diagnosis("umask", f"{mask:04o}: {shared}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = files != resource.RLIM_INFINITY and files < _OPEN_FILES
    advice = f"a task opens a few hundred files: ulimit -n {_OPEN_FILES}" if few else ""
    yield Diagnosis("open files (ulimit -n)", _limit(files), "note" if few else "good", advice)
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = space != resource.RLIM_INFINITY
    advice = "CUDA reserves far more address space than it uses and may fail: ulimit -v unlimited" if limited else ""
    value = f"{gib(space)} GiB" if limited else "unlimited"
    yield Diagnosis("address space (ulimit -v)", value, "note" if limited else "good", advice)


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def check_containers() -> Iterator[Diagnosis]:
    """The container runtimes that are there; none is started."""
    found = {name: _tool_output(name, "--version") for name in ("apptainer", "singularity", "docker", "podman")}
    versions = [(text.splitlines() or [name])[0] for name, text in found.items() if text is not None]
    yield Diagnosis("containers", "; ".join(versions) or "no Apptainer, no Docker; not needed outside of an image")


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
    runs = [("disk runs/", Path("runs"))] if Path("runs").is_dir() else []  # often a link to a larger file system
    for name, path in (("disk here", Path.cwd()), *runs, ("disk TMPDIR", temporary)):
        free = shutil.disk_usage(path).free
        if not os.access(path, os.W_OK | os.X_OK):
            yield Diagnosis(name, f"{path} is not writable", "note", "give another campaign.dir")
            continue
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
