"""Signals: asking a running task to save and leave.

A handler only sets a flag (rule 3 of the design); the stage's loop looks at it where everything is on disk. submitit's
own handlers are replaced by these, because on a default cluster they ignore SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import signal
from types import FrameType

from medsyn.stage import Control

EXIT_INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C, as shells count it
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def install(control: Control) -> None:
    """Turn SIGTERM, SIGUSR2 and the first Ctrl-C into `control.request_stop()`; the second Ctrl-C interrupts.

    Forked children (data loaders) inherit the handlers and ignore the signals: some process trackers of Slurm signal
    every descendant, and a task must not lose its data loader before it has saved.
    """
    main = os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        if os.getpid() != main:
            return
        control.request_stop()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, ask)


def leave_with_parent(parent: int, control: Control) -> None:
    """Be sent SIGTERM by the kernel when the scheduler with process id `parent` dies, however it dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        control.request_stop()
