"""Whether this process can be forked: neither threads nor CUDA survive a fork."""

from __future__ import annotations

import os
from pathlib import Path


def unfit() -> str | None:
    """Why a fork of this process would not be as good as a new process, or None."""
    if (trial := os.fork()) == 0:  # before a fork, OpenBLAS ends its threads
        os._exit(0)
    os.waitpid(trial, 0)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return "a library has started threads"
    if "/libcuda.so" in Path("/proc/self/maps").read_text():
        return "CUDA has been initialized"
    return None
