"""What a cluster does to tasks while they run: preemption, requeueing, time limits, dead nodes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medsyn.errors import EXIT_SAVED
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_trial import SlurmTrial

MakeTrial = Callable[[Cluster], SlurmTrial]


def preempt(trial: SlurmTrial) -> None:
    """A job of the high-priority partition takes every node for a moment."""
    urgent = trial.cluster.sbatch("--partition=gpu", "--nodes=4", "--exclusive", script="sleep 1")
    trial.cluster.wait_for_state(urgent, "COMPLETED", timeout=180)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        pytest.param({}, True, id="user-signal"),
        pytest.param({"user_signal": 0, "grace": 15}, True, id="sigterm-only"),
        pytest.param({"user_signal": 0, "grace": 0}, False, id="no-grace-time"),
    ],
)
def test_a_preempted_task_saves_and_goes_on(
    make_trial: MakeTrial,
    empty_cluster: Cluster,
    other_cluster: Callable[..., Cluster],
    settings: dict[str, int],
    told: bool,
) -> None:
    trial = make_trial(other_cluster(**settings) if settings else empty_cluster)
    trial.prepare()
    trial.script({"finetune ct": ["steps:400"], "generate oct-00000": ["steps:300"]})
    trial.queue()
    trial.wait_for_steps("finetune ct", 5)
    trial.cluster.wait_until(lambda: "finetune oct" in trial.done(), what="its sibling to be done")
    preempt(trial)
    trial.wait_for_steps("generate oct-00000", 5)
    preempt(trial)
    trial.finish()
    assert len(trial.done()) == 8
    assert trial.calls().count("finetune oct") == 1  # an element that is done is not queued again with its sibling
    for stage, task, steps in (("finetune", "ct", 400), ("generate", "oct-00000", 300)):
        assert set(trial.steps(f"{stage} {task}")) == set(range(steps))
        assert trial.repeated(f"{stage} {task}") <= 1
        assert len(trial.starts(stage, task)) >= 2
        if told:
            assert trial.codes(stage, task)[0] == EXIT_SAVED


def test_one_element_is_queued_again_and_its_finished_siblings_are_left_alone(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune oct": ["steps:300"]})
    trial.queue()
    trial.wait_for_steps("finetune oct", 5)
    trial.cluster.wait_until(lambda: "finetune ct" in trial.done(), what="its sibling to be done")
    trial.cluster.run("scontrol", "requeue", trial.job("finetune", "oct"))
    trial.finish()
    assert len(trial.done()) == 8
    assert trial.calls().count("finetune ct") == 1
    assert len(trial.starts("finetune", "oct")) == 2
    assert trial.repeated("finetune oct") <= 1


def test_a_task_that_needs_longer_than_its_time_limit_saves_in_time_and_goes_on(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:2000"]})
    trial.queue(time=1)
    trial.finish()
    assert "finetune ct" in trial.done()
    codes = trial.codes("finetune", "ct")
    assert codes[0] == EXIT_SAVED
    assert trial.steps("finetune ct") == list(range(2000))


def test_a_node_that_dies_costs_at_most_the_step_in_hand(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:600"]})
    trial.queue()
    trial.wait_for_steps("finetune ct", 5)
    node = trial.view().tasks["finetune", "ct"].node
    trial.cluster.kill_node(node)
    trial.finish()
    assert len(trial.done()) == 4
    assert len(trial.starts("finetune", "ct")) == 2
    assert trial.repeated("finetune ct") <= 1
