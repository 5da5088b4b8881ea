"""A run's metrics as an offline run of Weights & Biases, made from its metrics file, which alone counts.

Nothing leaves the machine: `wandb sync` sends what a person chooses.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb

from medsyn.training.scalars import scalars

logger = logging.getLogger(__name__)
# what the package would gather of the machine, the user and the code; a run is synchronised by somebody else, perhaps
_QUIET = {"console": "off", "silent": True, "disable_git": True, "disable_code": True, "save_code": False}
_PRIVATE = dict.fromkeys(("x_disable_meta", "x_disable_stats", "x_disable_machine_info"), True)


class WandbRun:
    """The offline run of one task."""

    def __init__(self, folder: Path, unit: str, lines: Iterable[Mapping[str, Any]], name: str, group: str) -> None:
        """Write the metrics so far anew, in place of what earlier attempts wrote: so each step is there once.

        Args:
            folder: of the offline run; its name is what the package calls it, `wandb`.
            unit: the key of a line that is its step.
            lines: the metrics so far.
            name: of the run.
            group: of runs that belong together.
        """
        shutil.rmtree(folder, ignore_errors=True)
        self._unit = unit
        settings = wandb.Settings(**_QUIET, **_PRIVATE)
        where = {"dir": str(folder.parent), "project": "medsyn", "name": name, "group": group}
        self._run: Any = wandb.init(mode="offline", settings=settings, **where)
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Note one line of the metrics; the package writes it when it sees fit.

        If it cannot, training goes on without it: the metrics file has the line.
        """
        if self._run is None:
            return
        try:
            self._run.log(scalars(line, self._unit), step=line[self._unit])
        except wandb.Error as error:
            logger.warning("nothing more is reported to Weights & Biases: %s", error)
            self._run = None

    def close(self) -> None:
        """Write what is left, and end the process that writes."""
        if self._run is not None:
            with suppress(wandb.Error):
                self._run.finish()
                wandb.teardown()  # the run is on disk when that process has ended
