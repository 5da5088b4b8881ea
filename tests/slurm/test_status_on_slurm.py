"""What status says of a real queue and real accounting."""

from __future__ import annotations

import os
import signal

from medsyn.campaign import cancel
from medsyn.campaign.status import read
from medsyn.campaign.status.state import Status
from tests.helpers.slurm_trial import SlurmTrial


def now(trial: SlurmTrial) -> Status:
    return read.read(trial.campaign())


def state(trial: SlurmTrial, stage: str, task: str) -> str:
    return now(trial).states[stage, task]


def wait_for(trial: SlurmTrial, stage: str, task: str, wanted: str) -> None:
    trial.cluster.wait_until(lambda: state(trial, stage, task) == wanted, 120, f"{stage} {task} to be {wanted}")


def test_a_task_runs_waits_again_and_is_done_while_a_failed_branch_is_blocked(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:300"], "finetune oct": ["input"]})
    trial.queue()
    trial.wait_for_steps("finetune ct", 5)
    wait_for(trial, "finetune", "oct", "failed")
    status = now(trial)
    assert status.states["finetune", "ct"] == "running"
    assert f"job {trial.job('finetune', 'ct')}, n" in status.why(("finetune", "ct"))
    assert status.states["generate", "ct-00000"] == "pending"
    assert status.states["generate", "oct-00000"] == "blocked"
    assert status.why(("generate", "oct-00000")) == "by finetune oct"
    assert (status.exit_code, status.next_step.command, status.notes) == (1, "resume", ())
    trial.cluster.run("scontrol", "requeue", trial.job("finetune", "ct"))
    wait_for(trial, "finetune", "ct", "preempted")
    trial.finish()
    states = {" ".join(key): state for key, state in now(trial).states.items()}
    blocked = {"rlhf-stage2 oct", "generate oct-00000"}
    assert {key for key, its in states.items() if its == "blocked"} == blocked
    assert {its for key, its in states.items() if key not in {*blocked, "finetune oct"}} == {"done"}
    assert "finetune ct" in trial.done()


def test_what_was_killed_without_a_word_is_lost_and_accounting_says_how_it_ended(trial: SlurmTrial) -> None:
    trial.prepare_short(cluster__max_requeues=0)
    trial.script({"finetune ct": ["steps:2000"]})
    trial.queue()
    trial.wait_for_steps("finetune ct", 5)
    job = trial.job("finetune", "ct")
    os.kill(trial.starts("finetune", "ct")[-1]["pid"], signal.SIGKILL)
    trial.finish()
    said = "recorded no end; accounting says FAILED"
    trial.cluster.wait_until(lambda: said in now(trial).why(("finetune", "ct")), 60, "accounting")
    status = now(trial)
    assert status.why(("finetune", "ct")).startswith(f"lost: job {job} on n")
    assert {key[0]: state for key, state in status.states.items()} == {
        **{"finetune": "failed", "generate": "blocked"},
        **dict.fromkeys(("rlhf-stage1", "evaluate"), "done"),
    }


def test_what_was_cancelled_is_said_to_be(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({task: ["steps:2000"] for task in ("finetune ct", "rlhf-stage1 all")})
    trial.queue()
    trial.wait_for_steps("finetune ct", 5)
    trial.wait_for_steps("rlhf-stage1 all", 5)
    cancel.jobs(trial.campaign().directory, print)
    status = now(trial)
    assert set(status.states.values()) == {"cancelled"}
    assert status.why(("finetune", "ct")) == "saved"
    assert "left the queue before it began" in status.why(("evaluate", "all"))
    assert (status.exit_code, status.next_step.command) == (75, "resume")


def test_while_the_controller_is_silent_nothing_is_called_lost(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:100"]})
    trial.queue()
    trial.wait_for_steps("finetune ct", 5)
    status = read.read(trial.campaign(), timeout=0.001)
    assert (status.states["generate", "ct-00000"], status.exit_code) == ("unknown", 75)
    assert "squeue did not answer" in status.notes[0]
    trial.finish()
    assert now(trial).exit_code == 0
