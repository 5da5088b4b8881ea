from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.usefixtures("slurm_packages")
def test_the_benchmark_queues_looks_at_and_cancels_a_campaign(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    command = [sys.executable, "benchmarks/launch.py", "--parts", "queue", "--shards", "10", "--json", str(numbers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(numbers.read_text())["queue"]
    gates = 5 + 1 + 5 + 5 + 5  # after fine-tuning, after each RLHF stage, after alignment, after generation
    assert row["sbatch_calls"] == 1 + 1 + 5 + 5 + 5 + gates + 1, (
        "an array per stage, from stage 2 per modality; evaluate"
    )
    assert row["files"] == row["sbatch_calls"] + row["sbatch_calls"] - gates, "a batch script, and of arrays the tasks"
    assert row["pickled_files"] > row["shards"]
    assert row["jobs"] == 5 + 1 + 5 + 5 + 10 + gates + 1
