"""`python -m medsyn` in processes of their own that need not import torch first: forks of this one, which has."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import tempfile
import traceback
from subprocess import CompletedProcess
from typing import IO

from tests.helpers.paths import ROOT


def medsyn(*arguments: str) -> CompletedProcess[str]:
    """Run a command from the checkout's folder, and wait for its end."""
    import medsyn.generation.stage  # noqa: F401 # torch, diffusers and what else a task takes seconds to import

    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            _become(arguments, output, errors)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for stream in (output, errors):
            stream.seek(0)
        return CompletedProcess(arguments, code, output.read(), errors.read())


def _become(arguments: tuple[str, ...], output: IO[str], errors: IO[str]) -> None:
    """End this process as an interpreter would that was started with these arguments."""
    code: object = 1
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(ROOT)
        sys.argv = ["-m", *arguments]
        runpy.run_module("medsyn", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
