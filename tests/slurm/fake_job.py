"""What jobs of a trial run: medsyn's own entry points, with the fake stages."""

from __future__ import annotations

import fake_stages

from medsyn.campaign.slurm import entry


def run_task(root: str, stage: str, name: str) -> None:
    entry.run_task(root, stage, name, fake_stages.FUNCTIONS)


run_gate = entry.run_gate
