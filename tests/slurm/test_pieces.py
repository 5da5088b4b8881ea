"""A job that goes on with other tasks of its array, in a real queue."""

from __future__ import annotations

from itertools import pairwise

import pytest

from medsyn.campaign.state import attempts
from tests.helpers.slurm_trial import SlurmTrial

SHARDS = 6
ONE_AT_A_TIME = {"gate": {"partition": "cpu"}, "generate": {"array_parallelism": 1}}


def prepare(trial: SlurmTrial, script: dict[str, list[str]]) -> None:
    """A campaign whose generation reads no other stage, six shards of it; one job at a time."""
    trial.write_tables(prompts=2 * SHARDS)
    trial.prepare_short(generation__modes=["baseline"])
    trial.script(script)
    trial.queue(only=trial.campaign().plan.select(["generate"]), stages=ONE_AT_A_TIME)


def test_one_job_makes_the_whole_array_and_the_other_elements_find_theirs_done(
    trial: SlurmTrial, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(trial, {})
    trial.finish()
    shards = sorted(trial.done())
    assert len(shards) == SHARDS
    first = trial.job("generate", "ct-00000")
    lines = [line for shard in shards for line in attempts.attempt_lines(trial.campaign().directory, key(shard))]
    assert {line["job"] for line in lines} == {first}
    assert trial.calls() == [shards[0], *reversed(shards[1:])]
    assert "is already done" in trial.log("generate", "ct-00001")
    lines.sort(key=lambda line: float(line["time"]))
    gaps = [after["time"] - before["time"] for before, after in pairwise(lines) if after["event"] == "start"]
    with capsys.disabled():
        print(f" seconds from the end of one task to the start of the next: {max(gaps):.3f} at most", end="")
    assert max(gaps) < 0.2


def test_preempted_in_another_elements_task_a_job_saves_it_and_goes_on_with_it(trial: SlurmTrial) -> None:
    last = f"generate ct-{SHARDS - 1:05d}"
    prepare(trial, {last: ["steps:400"]})
    trial.wait_for_steps(last, 5)
    urgent = trial.cluster.sbatch("--partition=gpu", "--nodes=4", "--exclusive", script="sleep 1")
    trial.cluster.wait_for_state(urgent, "COMPLETED", timeout=180)
    trial.finish()
    assert len(trial.done()) == SHARDS
    assert trial.codes(*key(last)) == [75, 0]
    assert trial.repeated(last) <= 1
    assert {task: trial.calls().count(task) for task in trial.done()} == {**dict.fromkeys(trial.done(), 1), last: 2}


def key(task: str) -> tuple[str, str]:
    stage, name = task.split()
    return stage, name
