"""What a job runs: the functions that submitit's pickles name. They carry coordinates, never state.

Both end with one of the exit codes of `medsyn.errors`, which the batch script reads; nothing here talks to Slurm.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from medsyn import disk, errors
from medsyn.campaign import records, worker
from medsyn.campaign.slurm import gate
from medsyn.errors import InputError, InputProblems
from medsyn.stage import CampaignDirectory


def run_task(root: str, stage: str, name: str, functions: Mapping[str, str] = worker.STAGE_FUNCTIONS) -> None:
    """Run one task; its output goes to the task's log, as that of a local run does."""
    _leave_when_asked()
    _write_to(CampaignDirectory(Path(root)).log(stage, name))
    job, restarts = records.slurm_job(), os.environ.get("SLURM_RESTART_COUNT", "0")
    print(f"--- job {job} on {os.uname().nodename}, restart {restarts}", flush=True)
    try:
        code = worker.run_task(Path(root), stage, name, functions)
    except (InputError, InputProblems) as error:
        print(error, file=sys.stderr, flush=True)
        code = errors.EXIT_BAD_INPUT
    if code:
        sys.exit(code)


def run_gate(root: str, name: str, folder: str) -> None:
    """Decide what cannot run any more, and leave the list to the batch script."""
    try:
        jobs = gate.blocked_jobs(records.open_campaign(Path(root)), name)
    except (InputError, InputProblems) as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(errors.EXIT_BAD_INPUT)
    print(f"{name}: cancelling {', '.join(jobs) or 'nothing'}", flush=True)
    disk.write_atomic(Path(folder) / "cancel", "".join(f"{job}\n" for job in jobs))


def _leave_when_asked() -> None:
    """Until the worker has handlers of its own there is nothing to save; submitit's would ignore SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: os._exit(errors.EXIT_SAVED))


def _write_to(log: Path) -> None:
    disk.make_directory(log.parent)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, disk.FILE_MODE)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
