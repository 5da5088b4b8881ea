"""A thread that encodes, hashes and writes while the device samples the next batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from medsyn import time_use


class Writer:
    """Runs jobs in order, one at a time, with no queue: what a kill can cost stays bounded.

    An error in a job is raised by the next `submit`, or when the `with` block ends; no further job runs after it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._running: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` in the background, after the one before it has ended."""
        self._wait()
        self._running = self._pool.submit(job)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            with time_use.of(time_use.WRITING):
                running.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()  # what has been sampled is written, whatever ended the block
        finally:
            self._pool.shutdown()
