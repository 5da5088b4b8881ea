"""The main job through a real queue, with the real stages: preempted and killed, it makes the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from medsyn.disk import read_jsonl
from medsyn.stage import STAGES
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.small_campaign import ROOT, SMALLER, results

pytestmark = pytest.mark.slow
SITE = "slurm/devcluster.yaml"


def launch(cluster: Cluster, directory: Path, command: str, *more: str) -> str:
    words = [sys.executable, "launch.py", command, "configs/tiny.yaml", *SMALLER, *more]
    done = cluster.run(*words, f"campaign.dir={directory}", f"cluster.site={SITE}", cwd=ROOT, timeout=300, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def status(cluster: Cluster, directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(launch(cluster, directory, "status", "--json"))
    return found


def kill_once_at_work(cluster: Cluster, directory: Path, stage: str, steps: int, seen: set[int]) -> None:
    """SIGKILL the process of a task of the stage that has made some steps, and was not killed before."""

    def process() -> int | None:
        for path in (directory / "tasks" / stage / "attempts").glob("*.jsonl"):
            newest = list(read_jsonl(path))[-1]
            beat = directory / "tasks" / stage / "beat" / f"{path.stem}.json"
            far_enough = beat.is_file() and json.loads(beat.read_text())["step"] >= steps
            if newest["event"] == "start" and newest["pid"] not in seen and far_enough:
                return int(newest["pid"])
        return None

    found = cluster.wait_until(process, 300, f"a task of {stage} at work")
    assert found is not None
    seen.add(found)
    os.kill(found, signal.SIGKILL)


def test_killed_and_preempted_in_the_queue_it_ends_in_the_same_bytes(
    empty_cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cluster, directory = empty_cluster, tmp_path / "campaign"
    assert "queued 11 tasks" in launch(cluster, directory, "submit", "--cluster", "slurm")
    killed: set[int] = set()
    moments = random.Random(1)
    kill_once_at_work(cluster, directory, "finetune", moments.randrange(1, 5), killed)
    kill_once_at_work(cluster, directory, "rlhf-stage1", 1, killed)
    kill_once_at_work(cluster, directory, "generate", 1, killed)
    urgent = cluster.sbatch("--partition=gpu", "--nodes=4", "--exclusive", script="sleep 1")
    cluster.wait_for_state(urgent, "COMPLETED", timeout=180)
    cluster.wait_until(lambda: cluster.squeue() == [], 600, "the campaign to end")
    assert set(status(cluster, directory)["stages"]) == set(STAGES)
    # made here, or by another process in the meantime: not before the queue works
    expected, found = results(request.getfixturevalue("undisturbed")), results(directory)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert (directory / "report.html").is_file()
    assert "everything is done" in launch(cluster, directory, "resume", "--cluster", "slurm")
