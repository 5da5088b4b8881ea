"""How the user started this program, so that the commands it suggests can be typed as they are."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def program() -> str:
    """The program's name in usage and errors: `launch.py`, `python -m medsyn` or `medsyn`."""
    started = Path(sys.argv[0])
    if started.suffix != ".py":
        return "medsyn"
    return "python -m medsyn" if started.name == "__main__.py" else started.name


def command(name: str, arguments: Sequence[str]) -> str:
    """What the user would type for a command, from the same place and in the same way as this one."""
    return shlex.join([*_typed(), name, *arguments])


def _typed() -> list[str]:
    started = Path(sys.argv[0])
    under_uv = "UV" in os.environ
    if started.suffix == ".py":
        words = ["-m", "medsyn"] if started.name == "__main__.py" else [sys.argv[0]]
        if under_uv:
            return ["uv", "run", *(["python"] if words[0] == "-m" else []), *words]
        return [sys.orig_argv[0], *words]
    if under_uv:
        return ["uv", "run", "medsyn"]
    found = shutil.which(started.name)
    is_found = found is not None and Path(found).absolute() == started.absolute()
    return [sys.argv[0] if started.name == "medsyn" and not is_found else "medsyn"]
