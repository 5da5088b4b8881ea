"""What jobs of a trial run: medsyn's own entry points, with the fake stages."""

from __future__ import annotations

from medsyn.campaign.slurm import job
from tests.helpers import fake_stages


def run_task(root: str, stage: str, name: str) -> None:
    job.run_task(root, stage, name, fake_stages.FUNCTIONS)


run_gate = job.run_gate
