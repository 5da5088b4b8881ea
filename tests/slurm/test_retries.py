"""Tasks that end otherwise than done, on a cluster: killed, crashed, on an unfit node, before they began."""

from __future__ import annotations

import os
import random
import signal

from medsyn.campaign.slurm import submit as queueing
from medsyn.campaign.state import attempts
from medsyn.campaign.status import read
from medsyn.errors import EXIT_BAD_NODE, EXIT_FAILED, EXIT_NO_PROGRESS, EXIT_SAVED
from tests.helpers.slurm_trial import SlurmTrial


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


def test_an_unfit_node_is_left_out_of_the_retry_of_an_arrays_elements(trial: SlurmTrial) -> None:
    """One of the two has the array's id as its raw id, for which `scontrol show job` has two lines."""
    trial.prepare(data__modalities=["CT", "OCT"], training__stage=1)
    trial.script({"finetune ct": ["bad-node", "work"], "finetune oct": ["bad-node", "work"]})
    trial.queue()
    trial.finish()
    for task in ("ct", "oct"):
        assert trial.codes("finetune", task) == [EXIT_BAD_NODE, 0]
        first, second = (line["node"] for line in trial.starts("finetune", task))
        assert first != second
    assert len(trial.done()) == len(trial.campaign().plan.tasks)


def test_an_unfit_node_is_left_out_of_the_retry(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["bad-node", "disk-full", "work"]})
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
    trial.queue(setup=["module load cuda/99.9"])
    trial.finish()
    logs = list(trial.campaign().directory.slurm(".").glob("*finetune*/*.out"))
    said = "".join(path.read_text() for path in logs)
    assert said.count("queueing") == 1
    reason = "before the task began, twice; setup: exit code 127 of: module load cuda/99.9"
    assert reason in said
    assert trial.starts("finetune", "ct") == []
    found = read.read(trial.campaign())
    assert found.states["finetune", "ct"] == "failed"
    assert found.why(("finetune", "ct")).endswith(reason)
    trial.queue()
    trial.finish()
    assert len(trial.done()) == 4


def test_a_job_is_queued_again_only_so_often(trial: SlurmTrial) -> None:
    trial.prepare_short(cluster__max_requeues=1)
    trial.script({"finetune ct": ["save", "save", "work"]})
    trial.queue()
    trial.finish()
    assert trial.done() == {"rlhf-stage1 all", "evaluate all"}, "the report says what is missing"
    assert trial.codes("finetune", "ct") == [EXIT_SAVED] * 2
    trial.queue()  # whoever looked at it may go on
    trial.finish()
    assert len(trial.done()) == 4
