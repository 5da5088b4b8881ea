"""What is made once for all processes of a run: those of pytest-xdist share the folder above their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path called `name` that `make` made in this process or another; whoever comes second waits for it.

    No test may write to it, for another process may be reading it.
    """
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path, made = folder / name, folder / f"{name}.made"
    with FileLock(folder / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(path, ignore_errors=True)  # of a process that failed
            make(path)
            made.touch()
    return path
