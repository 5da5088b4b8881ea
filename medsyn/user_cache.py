"""The folder of what all campaigns of a user share and can make again: `MEDSYN_CACHE`, else `~/.cache/medsyn`."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "MEDSYN_CACHE"


def directory() -> Path | None:
    """The folder, which may not exist yet; None if there is no home directory."""
    try:
        return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "medsyn")
    except RuntimeError:
        return None
