"""Tasks behind a container command, without Slurm tools inside; the runtime here is a stub that only starts Python."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medsyn.campaign.slurm import check
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_trial import SlurmTrial

STUB = """#!/bin/bash
# apptainer exec [--nv] [--bind X] [--env NAME=VALUE] IMAGE COMMAND: no tool of Slurm is on the PATH inside
shift
while :; do
  case $1 in --nv) shift ;; --bind) shift 2 ;; --env) export "$2"; shift 2 ;; *) break ;; esac
done
[ -e "$1" ] || { echo "FATAL: could not open image $1" >&2; exit 255; }
shift
PATH=%s exec "$@"
"""


@pytest.fixture
def container(tmp_path: Path) -> dict[str, object]:
    inside = tmp_path / "bin"
    inside.mkdir()
    runtime = tmp_path / "apptainer"
    runtime.write_text(STUB % inside)
    runtime.chmod(0o755)
    image = tmp_path / "image.sif"
    image.touch()
    return {
        "image": str(image),
        "runtime": str(runtime),
        "python": sys.executable,
        "environment": {"PYTHONPATH": str(ROOT)},
    }


def test_exit_codes_and_signals_cross_the_boundary(trial: SlurmTrial, container: dict[str, object]) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:300"], "rlhf-stage1 all": ["kill:SIGKILL", "work"]})
    trial.queue(container=container)
    trial.wait_for_steps("finetune ct", 5)
    urgent = trial.cluster.sbatch("--partition=gpu", "--nodes=4", "--exclusive", script="sleep 1")
    trial.cluster.wait_for_state(urgent, "COMPLETED", timeout=180)
    trial.finish()
    assert len(trial.done()) == 4
    assert trial.codes("finetune", "ct") == [75, 0]
    assert trial.repeated("finetune ct") <= 1
    assert len(trial.starts("rlhf-stage1", "all")) == 2


def problems(trial: SlurmTrial, container: dict[str, object]) -> str:
    profile = trial.data / "site.yaml"
    lines = "".join(f"\n  {key}: {value}" for key, value in container.items() if key != "environment")
    profile.write_text(f"partition: cpu\ncontainer:{lines}\n  environment: {{PYTHONPATH: '{ROOT}'}}\n")
    found = check.read_site(trial.config(cluster__site=str(profile)))[1]
    return "\n".join(str(problem) for problem in found if problem.key != "campaign.dir")  # which is in /tmp


def test_versions_are_compared_before_anything_is_queued(trial: SlurmTrial, container: dict[str, object]) -> None:
    assert problems(trial, container) == ""
    other = Path(str(container["runtime"])).with_name("other-python")
    answer = {"versions": ["3.12", "0.0.9"], "off": {"numpy": "2.0", "torch": None}, "canary": True}
    other.write_text(f"#!/bin/sh\necho hello\necho '{json.dumps(answer)}'\n")
    other.chmod(0o755)
    told = problems(trial, container | {"python": str(other)})
    for name in ("Python is 3.12", "medsyn is 0.0.9"):
        assert f"{name} inside the image" in told
    assert "the image lacks torch" in told
    assert "differ from this medsyn's pins: numpy 2.0 (1." in told


def test_variables_of_slurm_that_do_not_reach_the_inside_are_noticed(
    trial: SlurmTrial, container: dict[str, object]
) -> None:
    runtime = Path(str(container["runtime"]))
    runtime.write_text(runtime.read_text().replace("shift\n", "shift; unset SLURM_MEDSYN\n", 1))
    assert "Slurm's variables do not reach the container" in problems(trial, container)


def test_an_image_that_is_not_there_and_one_that_cannot_be_entered(
    trial: SlurmTrial, container: dict[str, object]
) -> None:
    assert "image: the image /no/such.sif does not exist" in problems(trial, container | {"image": "/no/such.sif"})
    broken = shutil.which("false")
    assert "medsyn inside the image could not be read" in problems(trial, container | {"python": broken})
    assert "versions inside the image were not compared" in problems(trial, container | {"runtime": "no-apptainer"})


def test_a_partition_that_does_not_exist_and_a_limit_that_is_too_long(
    make_trial: Callable[[Cluster], SlurmTrial], other_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    trial = make_trial(other_cluster(accounting=0, extra="PartitionName=short Nodes=ALL MaxTime=30"))
    profile = tmp_path / "site.yaml"
    profile.write_text("partition: short\ntime: 60\nstages: {evaluate: {partition: gpus, time: 5}, gate: {time: 5}}\n")
    told = "\n".join(map(str, check.read_site(trial.config(cluster__site=str(profile)))[1]))
    assert "time: 60 minutes exceed the limit of partition short (30)" in told
    assert "stages.evaluate.partition: there is no partition gpus; the cluster has cpu, gpu, preempt, short" in told
