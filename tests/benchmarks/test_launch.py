from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from medsyn import config as configuration
from medsyn.campaign.plan import inputs


def test_import_times_are_added_up_by_package() -> None:
    from launching import startup

    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:    250000 |     250000 |     torch.nn.functional",
        "import time:    500000 |     750000 |   torch.nn",
        "a line of a library's own",
        "import time:    125000 |     875000 | medsyn.training.finetune",
    ]
    assert startup.by_package(lines) == {"torch": 0.75, "medsyn": 0.125}


def test_a_processes_start_and_work_are_read_from_the_kernel() -> None:
    from launching import preemption, startup

    assert preemption.process_start(os.getpid()) <= time.time()
    assert startup.cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=1.0)


def test_every_second_of_a_preemption_is_somebodys() -> None:
    from launching.preemption import Preempted

    its = Preempted(submitted=100, asked=101, saved=103, gone=107, started=115, tried=131, working=163)
    assert (its.seconds("Slurm"), its.seconds("medsyn")) == (1 + 8, 2 + 4 + 16 + 32)
    assert sum(seconds for _, _, seconds in its.parts()) == its.working - its.submitted


def test_a_campaign_of_the_queue_has_the_shards_that_were_asked_for(tmp_path: Path) -> None:
    from launching import cluster, queueing

    words = queueing.campaign_words(tmp_path, 12)
    plan = inputs.check(configuration.load(str(cluster.CONFIG), words)).plan
    assert len(plan.by_stage["generate"]) == 12
