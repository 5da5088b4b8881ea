"""The checkpoints of a scorers' stage on disk: those that a run continues from, and epochs that are kept to look at.

step-000000200/                      state of the run; removed when the stage is done
20260131-120000/epoch_10/selector/   the scorer after ten epochs (`training.checkpoints.keep`), as it is published
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

_RUN = re.compile(r"\d{8}-\d{6}")


def kept_epoch(checkpoints: Path, epoch: int) -> Path:
    """Where the scorers after an epoch are kept: in one folder for the whole run, however often it is interrupted."""
    runs = (
        sorted(path.name for path in checkpoints.iterdir() if _RUN.fullmatch(path.name)) if checkpoints.is_dir() else []
    )
    return checkpoints / (runs[0] if runs else time.strftime("%Y%m%d-%H%M%S", time.gmtime())) / f"epoch_{epoch}"


def remove_checkpoints(checkpoints: Path, keep: bool) -> None:
    """Remove what a run would continue from; with `keep` what was kept stays."""
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if not (keep and _RUN.fullmatch(path.name)):
            shutil.rmtree(path, ignore_errors=True)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
