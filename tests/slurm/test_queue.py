"""The graph through a real queue: submitted, failed in part, submitted again, cancelled."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable

import pytest

from medsyn import disk
from medsyn.campaign import cancel
from medsyn.campaign.slurm import queue
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.state import attempts
from medsyn.campaign.status import read
from medsyn.errors import EXIT_BAD_INPUT, InputProblems
from tests.campaign.test_gate import rate
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_trial import SlurmTrial, settle_down

MakeTrial = Callable[[Cluster], SlurmTrial]


def all_tasks(trial: SlurmTrial) -> set[str]:
    return {" ".join(planned.key) for planned in trial.campaign().plan}


def test_the_whole_graph_runs_and_every_task_once(trial: SlurmTrial) -> None:
    trial.prepare()
    outcome = trial.queue()
    assert (outcome.queued, outcome.arrays, outcome.gates) == (8, 7, 7)
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert set(Counter(trial.calls()).values()) == {1}
    calls = trial.calls()
    assert calls.index("generate ct-00000") > max(calls.index("finetune ct"), calls.index("rlhf-stage2 ct"))
    assert calls[-1] == "evaluate all"
    assert "finetune ct: done (exit code 0)" in trial.log("finetune", "ct")
    assert trial.starts("finetune", "ct")[0]["job"] == trial.job("finetune", "ct")
    assert trial.queue().all_done


def test_submitting_again_while_jobs_are_in_the_queue_queues_nothing_twice(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:200"]})
    trial.queue()
    trial.wait_for_steps("finetune ct")
    again = trial.queue()
    assert (again.queued, again.arrays, again.gates) == (0, 0, 0)
    assert again.in_queue + again.done == 8
    trial.finish()
    assert set(Counter(trial.calls()).values()) == {1}
    assert trial.done() == all_tasks(trial)


def test_the_users_own_filters_of_the_queue_hide_nothing(trial: SlurmTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SCANCEL_NAME", "other")
    trial.prepare()
    trial.script({"finetune ct": ["deaf"]})
    trial.queue()
    assert trial.queue().queued == 0
    assert cancel.jobs(trial.campaign().directory, trial.said.append) > 2
    assert trial.in_queue() == 0


def test_a_job_that_is_cancelled_as_it_starts_does_not_come_back(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["deaf"]})
    for _ in range(3):
        trial.queue()
        trial.cluster.wait_until(lambda: any(not job.waits for job in trial.view().tasks.values()), what="a start")
        cancel.jobs(trial.campaign().directory, trial.said.append)
        settle_down(2)
        assert trial.in_queue() == 0


def test_jobs_that_are_held_are_said_and_released_by_the_next_submission(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:100"]})
    trial.queue()
    gate = next(one for one in on_record.read(trial.campaign().directory.ledger) if one.kind == "gate")
    trial.cluster.run("scontrol", "hold", gate.job)
    trial.wait_for_steps("finetune ct")
    trial.cluster.run("scontrol", "requeuehold", trial.job("finetune", "ct"))
    ct = ("finetune", "ct")
    trial.cluster.wait_until(lambda: trial.view().tasks[ct].is_held, what="a job that Slurm says is held")
    found = read.read(trial.campaign())
    assert any("2 jobs are held" in note for note in found.notes)
    assert found.why(ct).startswith("held: job requeued in held state")
    assert found.next_step.command == "resume"
    trial.queue()
    trial.finish()
    assert trial.done() == all_tasks(trial)


def test_arrays_of_one_task_then_a_wait_for_ratings_without_a_job(trial: SlurmTrial) -> None:
    told = trial.data / "told.txt"
    notify = shlex.join(["sh", "-c", 'echo $MEDSYN_EVENT >> "$0"', str(told)])
    campaign = trial.prepare_short(campaign__gate="ratings", cluster__notify=notify)
    trial.script({"finetune ct": ["save", "work"]})  # requeued once, under an id that is no array's
    trial.queue()
    trial.finish()
    assert trial.codes("finetune", "ct") == [75, 0]
    assert "_" not in trial.job("finetune", "ct")

    assert all_tasks(trial) - trial.done() == {"evaluate all"}
    assert read.read(trial.campaign()).needs_ratings
    again = trial.queue()
    assert (again.queued, trial.in_queue()) == (0, 0)
    assert "waits for ratings of the campaign's own images" in trial.said[-1]
    rate(campaign)
    assert trial.queue().queued == 1
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert told.read_text().split() == ["needs-ratings", "done"]


def test_a_failed_modality_takes_its_own_branch_out_of_the_queue_and_no_other(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune oct": ["input", "work"]})
    trial.queue()
    trial.finish()
    branch = {"finetune oct", "rlhf-stage2 oct", "generate oct-00000"}
    assert trial.done() == all_tasks(trial) - branch
    assert trial.codes("finetune", "oct") == [EXIT_BAD_INPUT]
    first = disk.read_json(trial.campaign().directory.done("evaluate", "all"))["fingerprint"]

    again = trial.queue()
    assert again.queued == 4  # the branch, and the evaluation of what there will be then
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert Counter(trial.calls())["finetune ct"] == 1
    assert disk.read_json(trial.campaign().directory.done("evaluate", "all"))["fingerprint"] != first


def test_when_nothing_can_go_on_nothing_stays_in_the_queue(trial: SlurmTrial) -> None:
    trial.prepare()
    failing = {"finetune ct": ["stuck"], "finetune oct": ["input"], "rlhf-stage1 all": ["input"]}
    trial.script(failing)
    trial.queue()
    trial.finish()
    assert trial.done() == set()
    found = read.read(trial.campaign())
    assert {" ".join(key) for key in found.by_state["failed"]} == failing.keys()
    assert len(found.by_state["blocked"]) == 5


def test_a_retry_makes_dependents_in_the_queue_wait_for_it(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:400"], "finetune oct": ["input", "steps:500"]})
    trial.queue()
    directory = trial.campaign().directory
    branch = {("finetune", "oct"), ("rlhf-stage2", "oct"), ("generate", "oct-00000")}
    trial.cluster.wait_until(directory.failed("finetune", "oct").is_file, what="oct to fail")
    trial.wait_for_steps("finetune ct")
    trial.cluster.wait_until(lambda: not branch & trial.view().tasks.keys(), what="its branch to leave the queue")
    again = trial.queue()
    assert again.queued == len(branch)
    assert any("evaluate, already in the queue: dependency updated" in line for line in trial.said)
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert set(Counter(trial.calls()).values()) <= {1, 2}
    ended = disk.read_jsonl(directory.attempts("finetune", "oct"))
    oct_end = max(line["time"] for line in ended if line["event"] == "end")
    assert trial.starts("evaluate", "all")[0]["time"] > trial.starts("generate", "oct-00000")[0]["time"] > oct_end


def test_nothing_but_what_was_asked_for(trial: SlurmTrial) -> None:
    trial.prepare()
    with pytest.raises(InputProblems, match="rlhf-stage1 all, which is neither done nor in the queue"):
        trial.queue(only={("generate", "ct-00000"), ("finetune", "ct")})
    outcome = trial.queue(only={("finetune", "ct")})
    assert outcome.queued == 1
    trial.finish()
    assert trial.done() == {"finetune ct"}


def test_cancel_ends_this_campaign_and_nothing_else_and_resume_goes_on_at_once(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:200"], "finetune oct": ["deaf", "work"]})
    stranger = trial.cluster.sbatch("--partition=cpu", script="sleep 300")
    trial.queue()
    trial.wait_for_steps("finetune ct", 3)
    trial.cluster.wait_until(lambda: "finetune oct" in trial.calls(), what="oct to start")
    directory = trial.campaign().directory
    assert cancel.jobs(directory, trial.said.append) > 2
    assert trial.in_queue() == 0
    assert [row["job"] for row in trial.cluster.squeue()] == [stranger]
    settle_down(3)  # a job that requeued itself would be back by now
    assert trial.in_queue() == 0
    states = read.read(trial.campaign()).states
    before = {key for key, state in states.items() if state == "done"}  # scorers do not wait for fine-tuning
    assert all(stage.startswith("rlhf") for stage, _ in before)
    assert {states[key] for key in states.keys() - before} == {"cancelled"}
    assert cancel.jobs(directory, trial.said.append) == 0
    made = len(trial.steps("finetune ct"))
    assert trial.queue().queued == len(states) - len(before)
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert trial.repeated("finetune ct") <= 1
    assert trial.steps("finetune ct")[made - 1 : made + 1] != []
    trial.cluster.run("scancel", stranger)


def test_a_gate_that_was_cancelled_is_replaced(trial: SlurmTrial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["steps:250"]})
    trial.queue()
    trial.wait_for_steps("finetune ct")
    gate = next(one for one in on_record.read(trial.campaign().directory.ledger) if one.kind == "gate")
    trial.cluster.run("scancel", gate.job)
    trial.cluster.wait_until(
        lambda: any(task.reason == queue.NEVER for task in trial.view().tasks.values()),
        what="a dependency that is never met",
    )
    trial.queue()
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert set(Counter(trial.calls()).values()) == {1}


def test_jobs_that_get_nothing_of_the_submitters_environment(trial: SlurmTrial) -> None:
    trial.prepare_short()
    trial.queue(sbatch={"export": "NONE"})
    trial.finish()
    assert trial.done() == all_tasks(trial)


def test_a_cluster_without_accounting_with_small_arrays_that_forgets_quickly(
    make_trial: MakeTrial, other_cluster: Callable[..., Cluster]
) -> None:
    trial = make_trial(other_cluster(accounting=0, max_array=3, min_job_age=5))
    trial.write_tables(prompts=8)
    trial.prepare()
    trial.script({"finetune oct": ["input", "work"], "generate ct-00003": ["kill:SIGKILL", "work"]})
    outcome = trial.queue()
    assert outcome.queued == 14
    assert outcome.arrays == 9  # of four shards three and one, for each of two modalities
    trial.finish()
    missing = all_tasks(trial) - trial.done()
    assert missing == {"finetune oct", "rlhf-stage2 oct", *(f"generate oct-{number:05d}" for number in range(4))}
    settle_down(5)
    failed = trial.job("finetune", "oct")
    trial.cluster.wait_until(lambda: not trial.cluster.job(failed), what="the failed job to be forgotten")
    assert trial.cluster.run("sacct", check=False).returncode != 0
    assert trial.queue().queued == 7
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert attempts.read_failure(trial.campaign().directory, ("finetune", "oct")) is None


@pytest.mark.parametrize("moment", ["before it is recorded", "before the release"])
def test_a_launcher_that_is_killed_leaves_nothing_that_runs_twice(trial: SlurmTrial, moment: str) -> None:
    import os

    trial.prepare()
    child = os.fork()
    if child == 0:  # the launcher
        from medsyn.campaign.slurm import submit as queueing
        from medsyn.campaign.state import ledger

        write = ledger.record
        queued = 0

        def record(path: object, event: str, **facts: object) -> None:
            nonlocal queued
            queued += event == on_record.QUEUED
            if moment == "before it is recorded" and queued == 4:
                os._exit(9)
            write(path, event, **facts)  # type: ignore[arg-type]

        ledger.record = record  # type: ignore[assignment]
        if moment == "before the release":
            queueing._release = lambda jobs, names: os._exit(9)  # type: ignore[assignment]
        trial.queue()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    settle_down(2)
    assert trial.calls() == []
    trial.queue()
    trial.finish()
    assert trial.done() == all_tasks(trial)
    assert set(Counter(trial.calls()).values()) == {1}


def test_an_interrupted_launcher_takes_everything_back(trial: SlurmTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    from medsyn.campaign.slurm.submit import Interrupted

    trial.prepare()

    class Impatient(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            if "rlhf-stage1" in line:
                os.kill(os.getpid(), signal.SIGTERM)

    import os
    import signal

    trial.said = Impatient()
    with pytest.raises(Interrupted):
        trial.queue()
    assert trial.in_queue() == 0
    trial.cluster.wait_until(lambda: trial.cluster.squeue() == [], what="an empty queue")
    trial.said = []
    trial.queue()
    trial.finish()
    assert trial.done() == all_tasks(trial)


def test_shards_may_be_dealt_otherwise_while_jobs_are_in_the_queue(trial: SlurmTrial) -> None:
    trial.write_tables(prompts=8)
    trial.prepare()
    trial.script({"finetune ct": ["steps:200"]})
    trial.queue()
    trial.wait_for_steps("finetune ct")
    trial.prepare(generation__blocks_per_shard=4)
    trial.queue()
    trial.finish()
    trial.queue()
    trial.finish()
    assert trial.done() == all_tasks(trial)
