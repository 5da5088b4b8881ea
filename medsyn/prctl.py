"""What Linux does for a process when a relative dies: see prctl(2)."""

from __future__ import annotations

import ctypes
import os

_SET_PDEATHSIG = 1  # linux/prctl.h
_SET_CHILD_SUBREAPER = 36


def signal_at_death_of(parent: int, number: int) -> bool:
    """Have the kernel send this process a signal when its parent dies, however it dies.

    Returns:
        Whether the process with id `parent` still is the parent; if not, it died before this call.
    """
    _prctl(_SET_PDEATHSIG, number)
    return os.getppid() == parent


def adopt_orphans(adopt: bool) -> None:
    """Whether processes below this one whose parent ends become its children, instead of the init process's.

    Raises:
        OSError: the system has no such thing.
    """
    _prctl(_SET_CHILD_SUBREAPER, int(adopt))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
