"""What jobs of a trial run: medsyn's own entry points, with the fake stages."""

from __future__ import annotations

from functools import partial

from medsyn.campaign.slurm import job
from tests.helpers import fake_stages


def run_task(root: str, stage: str, name: str) -> None:
    job.run_task(root, stage, name, fake_stages.FUNCTIONS)


def run_gate(root: str, name: str, folder: str) -> None:
    """A marker on this machine's file system shows at once: a task that left none is waited for 2 s, not 30."""
    job.blocked_jobs = partial(job.blocked_jobs, latency_seconds=2.0)
    job.run_gate(root, name, folder)
