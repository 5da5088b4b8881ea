"""What is written while training goes on: its tensors are copied to the host, and a thread does the rest."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from medsyn import host_memory
from medsyn.text import GIB, gib

_SPARE = GIB  # of memory, for what else the process needs meanwhile
_BYTES_PER_SECOND = 300e6  # assumed before anything has been written: a shared file system, and hashing

Tensors = Mapping[str, Tensor]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Something to write: its tensors, on any device, and what writes copies of them."""

    tensors: Tensors
    write: Callable[[Tensors], None]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


class BackgroundWriter:
    """Writes one set of jobs at a time, in a thread that a process which is in a hurry may leave behind.

    Copies that would not fit into memory are not made: such jobs are done at once, and training waits.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._begun = 0.0
        self._speed = _BYTES_PER_SECOND
        self.last_seconds = 0.0  # that the last jobs took; 0 before the first
        self._told = False

    def begin(self, jobs: Sequence[Job]) -> None:
        """Write what the jobs' tensors hold now; waits for the jobs before them.

        Raises:
            Exception: what one of the jobs before raised, or one of these if it had to be done at once.
        """
        self.wait()
        self._begun, size = time.monotonic(), sum(job.size for job in jobs)
        if not self._fits(size):
            for job in jobs:
                job.write(job.tensors)
            self._note_time(size)
            return
        copies = [{name: tensor.detach().to("cpu", copy=True) for name, tensor in job.tensors.items()} for job in jobs]
        writes = [job.write for job in jobs]
        self._thread = threading.Thread(target=self._write, args=(writes, copies, size), name="writer", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._thread is not None and self._thread.is_alive()

    def raise_error(self) -> None:
        """Raise what a job has raised, if it has ended by now."""
        if self._thread is not None and not self.busy:
            self.wait()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all is written, or for so many seconds; whether it is. Raises what a job raised."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def seconds(self, size: int) -> float:
        """How long so many bytes would take, as fast as the last ones, after what is being written."""
        alone = size / self._speed
        return alone + (max(0.0, alone - (time.monotonic() - self._begun)) if self.busy else 0)

    def _write(self, writes: list[Callable[[Tensors], None]], copies: list[dict[str, Tensor]], size: int) -> None:
        try:
            for write in writes:
                write(copies.pop(0))
            self._note_time(size)
        except BaseException as error:  # raised again where training notices
            self._error = error

    def _note_time(self, size: int) -> None:
        self.last_seconds = time.monotonic() - self._begun
        self._speed = max(size, 1) / max(self.last_seconds, 1e-6)

    def _fits(self, size: int) -> bool:
        left = host_memory.available()
        fits = left is None or size + _SPARE <= left
        if not fits and not self._told:
            self._told = True
            reason = f"a copy takes {gib(size)} GiB of memory and {gib(left or 0)} GiB are free"
            logger.warning("training waits while checkpoints are written: %s", reason)
        return fits
