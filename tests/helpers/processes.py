"""Processes of a test's own, which may be killed."""

from __future__ import annotations

import os
from collections.abc import Callable


def fork(body: Callable[[], None]) -> int:
    """Start `body` in a child process, which may be killed; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    """Wait for a child process; its status as os.waitpid has it."""
    return os.waitpid(child, 0)[1]
