"""What happens on a cluster while tasks run: preemption, limits, kills, dead and unfit nodes."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import pytest

from medsyn.campaign.slurm import submit as queueing
from medsyn.campaign.state import attempts
from medsyn.campaign.status import read
from medsyn.errors import EXIT_BAD_NODE, EXIT_FAILED, EXIT_NO_PROGRESS, EXIT_SAVED
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


def test_killed_ten_times_at_random_moments_it_repeats_at_most_one_step_each(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:900"]})
    trial.queue()
    moments = random.Random(0)
    for kills in range(1, 11):
        target = len(trial.steps("finetune ct")) + moments.randrange(3, 40)
        trial.wait_for_steps("finetune ct", target)
        os.kill(trial.starts("finetune", "ct")[-1]["pid"], signal.SIGKILL)
        trial.cluster.wait_until(lambda: len(trial.starts("finetune", "ct")) > kills, what="the next try")  # noqa: B023
    trial.finish()
    assert len(trial.done()) == 4
    assert set(trial.steps("finetune ct")) == set(range(900))
    assert trial.repeated("finetune ct") <= 10
    print(f"{trial.repeated('finetune ct')} steps of 900 made again after 10 kills")


def test_what_fails_twice_at_the_same_place_stops_and_what_crashes_once_goes_on(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["crash:1", "crash:2", "work"], "finetune oct": ["crash:1", "work"]})
    trial.queue()
    trial.finish()
    assert trial.codes("finetune", "ct") == [EXIT_FAILED, EXIT_NO_PROGRESS]
    assert trial.codes("finetune", "oct") == [EXIT_FAILED, 0]
    failure = attempts.read_failure(trial.campaign().directory, ("finetune", "ct"))
    assert failure and any("boom" in line for line in failure["traceback"])
    assert "generate oct-00000" in trial.done()


@pytest.mark.parametrize("action", ["bad-node", "disk-full"])
def test_an_unfit_node_is_left_out_of_the_retry(trial: SlurmTrial, action: str) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": [action, action, "work"]})
    trial.queue()
    trial.finish()
    assert len(trial.done()) == 4
    assert trial.codes("finetune", "ct") == [EXIT_BAD_NODE, EXIT_BAD_NODE, 0]
    assert len({line["job"] for line in trial.starts("finetune", "ct")}) == 1
    nodes = [line["node"] for line in trial.starts("finetune", "ct")]
    assert len(set(nodes)) == 3
    assert queueing.bad_nodes(trial.campaign()) == sorted(nodes[:2])


def test_a_task_that_cannot_even_begin_is_tried_twice(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.queue(srun=["--no-such-option"])
    trial.finish()
    logs = list(trial.campaign().directory.slurm(".").glob("*finetune*/*.out"))
    said = "".join(path.read_text() for path in logs)
    assert said.count("queueing") == 1
    assert "before the task began, twice" in said
    assert trial.starts("finetune", "ct") == []
    found = read.read(trial.campaign())
    assert found.states["finetune", "ct"] == "failed"  # accounting's word
    trial.queue()
    trial.finish()
    assert len(trial.done()) == 4


def test_a_job_is_queued_again_only_so_often(trial: SlurmTrial) -> None:
    trial.prepare_short(cluster__max_requeues=1)
    trial.script({"finetune ct": ["save", "save", "work"]})
    trial.queue()
    trial.finish()
    assert trial.done() == set()
    assert trial.codes("finetune", "ct") == [EXIT_SAVED] * 2
    trial.queue()  # whoever looked at it may go on
    trial.finish()
    assert len(trial.done()) == 4
