"""A run's metrics as event files for TensorBoard, made from its metrics file, which alone counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from medsyn.training.scalars import scalars


class EventFiles:
    """The event files of one run."""

    def __init__(self, folder: Path, unit: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the metrics so far anew, and drop what earlier attempts wrote: so each step is there once.

        A TensorBoard that looks on is told to forget everything from the first step on. The clock times of the earlier
        steps are those of this attempt.

        Args:
            folder: of the event files.
            unit: the key of a line that is its step.
            lines: the metrics so far.
        """
        self._unit, earlier = unit, list(folder.glob("events.out.*"))
        self._writer = SummaryWriter(str(folder), purge_step=0)
        for line in lines:
            self._put(line)
        self._writer.flush()
        for path in earlier:
            path.unlink(missing_ok=True)

    def add(self, line: Mapping[str, Any]) -> None:
        """Write one line of the metrics, for others to see at once."""
        self._put(line)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, and end the thread that writes."""
        self._writer.close()

    def _put(self, line: Mapping[str, Any]) -> None:
        for name, number in scalars(line, self._unit).items():
            self._writer.add_scalar(name, number, line[self._unit])
