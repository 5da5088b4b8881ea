"""What jobs of a trial run: medsyn's own entry point, with the fake stages."""

from __future__ import annotations

import sys
from functools import partial

from medsyn.campaign.slurm import job
from tests.helpers import fake_stages

if __name__ == "__main__":
    # a marker on this machine's file system shows at once: a task that left none is waited for 2 s, not 30
    job.settled_at = partial(job.settled_at, latency_seconds=2.0)
    job.main(sys.argv[1:], fake_stages.FUNCTIONS)
