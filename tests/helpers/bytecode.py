"""Bytecode that every process of the tests shares, also where Python is told to write none."""

from __future__ import annotations

import os
import sys

from tests.helpers.paths import ROOT


def keep() -> None:
    """Keep compiled modules apart from their sources, for this process and those that it starts.

    uv installs no bytecode. Where PYTHONDONTWRITEBYTECODE is set, as images of CI often do, every process that imports
    torch and diffusers would compile some 2,500 modules once more: 5 of its 9 seconds.
    """
    if not sys.dont_write_bytecode:
        return
    folder = str(ROOT / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode, sys.pycache_prefix = False, folder
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder
