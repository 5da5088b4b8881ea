"""Where a campaign stands, by its files and by what Slurm's commands print."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medsyn import disk
from medsyn.campaign.plan import machine
from medsyn.campaign.slurm import queue, submissions
from medsyn.campaign.state import campaign_file, done_index, ledger, locks, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.status import as_json, as_text, figures
from medsyn.campaign.status import read as status_read
from medsyn.campaign.status.state import Status
from tests.helpers.fake_slurm import Slurm
from tests.helpers.trial import Trial, wait_until

SHARDS = ("ct-00000", "oct-00000")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Slurm(folder)


LAST = "; its log ends with: srun: error: no such image"


def queued(trial: Trial) -> Campaign:
    """Both fine-tunes as job 10, both shards as job 20, the evaluation as job 30."""
    campaign = trial.prepare()
    trial.queued("trial-finetune", "finetune", ("ct", "oct"), "10")
    trial.queued("trial-generate", "generate", SHARDS, "20")
    trial.queued("trial-evaluate", "evaluate", ("all",), "30")
    return campaign


def attempt(campaign: Campaign, stage: str, task: str, job: str | None, ended: str | None = None) -> None:
    path = campaign.directory.attempts(stage, task)
    disk.append_jsonl(path, {"event": "start", "attempt": 1, "time": 100.0, "host": "n1", "pid": 1, "job": job})
    if ended:
        disk.append_jsonl(path, {"event": "end", "attempt": 1, "time": 160.0, "exit_code": 75, "reason": ended})


def states(status: Status, stage: str) -> dict[str, str]:
    return {key[1]: state for key, state in status.states.items() if key[0] == stage}


def said(status: Status) -> str:
    stream = io.StringIO()
    as_text.show(Console(file=stream, width=150), status, lambda words: f"launch {words}")
    return stream.getvalue()


def test_time_is_a_gpus_where_there_is_one(trial: Trial, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = trial.prepare(device__use_cuda=True)
    for gpus, words in (([], "task time"), (["0"], "GPU time")):
        monkeypatch.setattr(machine, "visible_gpus", lambda gpus=gpus: gpus)
        assert words in said(status_read.read(campaign))
    monkeypatch.setattr(machine, "visible_gpus", lambda: [])
    trial.queued("trial-finetune", "finetune", ("ct", "oct"), "10")
    assert "GPU time" in said(status_read.read(campaign)), "compute nodes are another machine"


def test_the_queue_says_who_runs_who_waits_and_who_waits_again(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    attempt(campaign, "finetune", "oct", "10_1", ended="saved")
    slurm.queue(
        "10_0|RUNNING|None|n2||1|trial-finetune",
        "10_1|PENDING|BeginTime|||1|trial-finetune",
        "20_0|PENDING|Dependency||afterok:12|1|trial-generate",
        "99|RUNNING|None|n9||1|somebody-else",
    )
    status = status_read.read(campaign)
    assert states(status, "finetune") == {"ct": "running", "oct": "preempted"}
    assert states(status, "generate") == {"ct-00000": "pending", "oct-00000": "idle"}
    assert (status.exit_code, status.next_step.command) == (75, "resume")
    text = said(status)
    assert "finetune ct running starting, job 10_0, n2" in text
    assert "finetune 1 preempted: BeginTime, saved" in text
    assert "generate 1 pending: Dependency" in text
    assert (slurm.asked("squeue"), slurm.asked("sacct")) == (1, 1)  # the latter for shard 20_1, which is gone


def test_nothing_is_left_to_do_but_look_while_everything_is_in_the_queue(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    for stage in ("rlhf-stage1", "rlhf-stage2"):
        tasks = tuple(planned.task.name for planned in campaign.plan.by_stage[stage])
        trial.queued(stage, stage, tasks, stage)
    submitted = submissions.read(campaign.directory.ledger)
    jobs = [f"{identity}|PENDING|Priority|||1|{one.name}" for one in submitted for identity, _ in one.elements()]
    slurm.queue(*jobs)
    status = status_read.read(campaign)
    assert {state for state, keys in status.by_state.items() if keys} == {"pending"}
    assert status.next_step.command == "status --watch"


@pytest.mark.parametrize("reason", ["job requeued in held state", "JobHeldAdmin", "launch failed requeued held"])
def test_what_is_held_is_said_with_slurms_reason_and_resume_releases_it(
    trial: Trial, slurm: Slurm, reason: str
) -> None:
    campaign = queued(trial)
    attempt(campaign, "finetune", "oct", "10_1", ended="failed")
    slurm.queue("10_0|RUNNING|None|n2||1|trial-finetune", f"10_1|PENDING|{reason}|||0|trial-finetune")
    status = status_read.read(campaign)
    assert (status.next_step.why, status.next_step.command) == ("to release what is held", "resume")
    text = said(status)
    assert f"1 jobs are held, including 10_1 ({reason})" in text
    assert f"finetune 1 preempted: held: {reason}" in text
    listed = as_json.as_dict(status, str)["tasks"]
    assert [its["why"] for its in listed if its["task"] == "oct"] == [f"held: {reason}, failed"]
    slurm.command("scontrol")
    told: list[str] = []
    queue.release(queue.view(submissions.read(campaign.directory.ledger)).tasks.values(), told.append)
    assert told == [f"10_1  was held ({reason}) and has been released"]
    slurm.command("scontrol", code=1)
    queue.release(queue.view(submissions.read(campaign.directory.ledger)).tasks.values(), told.append)
    assert "10_1  is held" in told[1] and "administrators" in told[1]
    assert slurm.asked("scontrol") == 2


@pytest.mark.parametrize(
    ("accounting", "code", "how"),
    [
        (["10_1|OUT_OF_MEMORY", "10_0|COMPLETED"], 0, "; accounting says OUT_OF_MEMORY"),
        (["10_1|CANCELLED by 1000"], 0, "; accounting says CANCELLED"),
        ([], 1, "; accounting has no record of it"),
    ],
)
def test_a_task_whose_job_is_gone_without_an_end_is_lost(
    trial: Trial, slurm: Slurm, accounting: list[str], code: int, how: str
) -> None:
    campaign = queued(trial)
    attempt(campaign, "finetune", "oct", "10_1")
    slurm.accounting(*accounting, code=code)
    status = status_read.read(campaign)
    assert states(status, "finetune") == {"ct": "idle", "oct": "failed"}
    assert status.why(("finetune", "oct")) == f"lost: job 10_1 on n1 is gone and recorded no end{how}"
    assert (status.exit_code, status.next_step.command, slurm.asked("sacct")) == (1, "resume", 1)


@pytest.mark.parametrize(
    ("accounting", "state", "why"),
    [
        ("10_1|CANCELLED by 1000", "idle", f"job 10_1 left the queue before it began; accounting says CANCELLED{LAST}"),
        ("10_1|FAILED", "failed", f"job 10_1 ended before it began; accounting says FAILED{LAST}"),
        ("10_0|FAILED", "idle", f"job 10_1 left the queue before it began{LAST}"),
    ],
)
def test_a_job_that_is_gone_before_its_task_began(
    trial: Trial, slurm: Slurm, accounting: str, state: str, why: str
) -> None:
    campaign = queued(trial)
    disk.write_atomic(trial.root / "tasks/slurm/trial-finetune/10_1_0_log.err", "srun: error: no such image\n")
    slurm.accounting(accounting)
    status = status_read.read(campaign)
    assert (states(status, "finetune")["oct"], status.why(("finetune", "oct"))) == (state, why)
    assert ("    srun: error: no such image" in said(status)) == (state == "failed")


def test_what_was_cancelled_is_told_as_that_until_it_is_queued_again(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    attempt(campaign, "finetune", "oct", "10_1")  # killed by scancel, with no time to write down its end
    path = campaign.directory.ledger
    ledger.record(path, ledger.CANCELLED, jobs=5)
    slurm.accounting("10_1|CANCELLED by 1000", "10_0|CANCELLED by 1000")
    status = status_read.read(campaign)
    assert {state for state, keys in status.by_state.items() if keys} == {"cancelled"}
    assert (status.exit_code, status.is_active) == (75, False)
    assert (status.next_step.why, status.next_step.command) == ("it was cancelled; to continue", "resume")
    assert "cancelled" in said(status)
    listed = as_json.as_dict(status, str)
    assert listed["stages"]["finetune"]["states"]["cancelled"] == 2
    assert {its["state"] for its in listed["tasks"]} == {"cancelled"}
    assert status.why(("finetune", "oct")) == "job 10_1 on n1; accounting says CANCELLED"

    trial.queued("again", "finetune", ("ct",), "40")
    slurm.queue("40|PENDING|Priority|||1|again")
    assert states(status_read.read(campaign), "finetune") == {"ct": "pending", "oct": "cancelled"}
    slurm.queue()
    ledger.record(path, ledger.SUBMITTED)  # run on this machine since
    assert states(status_read.read(campaign), "finetune") == {"ct": "idle", "oct": "failed"}


def test_a_job_that_ended_before_its_task_is_failed_without_accounting_too(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    folder = trial.root / "tasks/slurm/trial-finetune"
    disk.write_atomic(folder / "10_1_0_log.out", "medsyn: setup: exit code 127 of: module load x\n")
    (folder / "stumbled-10_1").touch()
    slurm.accounting(code=1)
    status = status_read.read(campaign)
    assert states(status, "finetune") == {"ct": "idle", "oct": "failed"}
    assert status.why(("finetune", "oct")).endswith("ends with: medsyn: setup: exit code 127 of: module load x")


def test_a_task_that_was_killed_outside_of_slurm_is_not_lost(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    attempt(campaign, "finetune", "oct", None)
    assert states(status_read.read(campaign), "finetune")["oct"] == "idle"


def test_while_slurm_does_not_answer_nothing_is_lost_or_idle(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    attempt(campaign, "finetune", "oct", "10_1")
    slurm.queue(code=1)
    status = status_read.read(campaign)
    assert states(status, "finetune") == {"ct": "unknown", "oct": "unknown"}
    assert states(status, "rlhf-stage1") == {"all": "idle"}  # it never was queued
    assert (status.exit_code, status.next_step.command) == (75, "status")
    assert "squeue: Unable to contact slurm controller" in said(status)
    assert slurm.asked("sacct") == 0


def test_a_failure_blocks_its_branch_and_no_other(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    trial.work("finetune", "oct")
    trial.script({"finetune ct": ["input"]})
    trial.work("finetune", "ct")
    slurm.queue("20_0|PENDING|Dependency|||1|trial-generate", "20_1|PENDING|Dependency|||1|trial-generate")
    status = status_read.read(campaign)
    assert states(status, "finetune") == {"ct": "failed", "oct": "done"}
    assert states(status, "rlhf-stage2") == {"ct": "blocked", "oct": "idle"}
    assert states(status, "generate") == {"ct-00000": "blocked", "oct-00000": "pending"}
    text = said(status)
    assert "finetune ct failed InputError: table.csv, line 3: row 3 is wrong" in text
    assert "generate ct-00000 blocked by finetune ct" in text
    assert "next      once the cause is fixed: launch resume" in text


def test_a_dependency_that_can_never_be_met_is_said(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    slurm.queue("20_1|PENDING|DependencyNeverSatisfied|||1|trial-generate")
    status = status_read.read(campaign)
    assert states(status, "generate")["oct-00000"] == "blocked"
    assert "generate oct-00000 blocked by Slurm: DependencyNeverSatisfied, job 20_1" in said(status)


def test_a_launcher_that_was_killed_while_it_queued_is_told(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    for name in ("a", "b"):
        ledger.record(campaign.directory.ledger, submissions.QUEUEING, round="x", name=name)
    assert "killed before it released the 2 jobs it queued: resume" in said(status_read.read(campaign))
    with locks.exclusive(campaign.directory.ledger):
        assert "killed" not in said(status_read.read(campaign))  # it is at work


def test_without_slurm_nobody_asks_it(trial: Trial, slurm: Slurm) -> None:
    campaign = trial.prepare()
    assert {*states(status_read.read(campaign), "finetune").values()} == {"idle"}
    with locks.exclusive(campaign.directory.ledger):
        assert {*states(status_read.read(campaign), "finetune").values()} == {"pending"}
    assert slurm.asked("squeue") == 0


def test_a_task_that_works_here_is_running(trial: Trial) -> None:
    campaign = trial.prepare()
    trial.script({"finetune ct": ["steps:500"]})
    trial.start("fake_worker", "finetune", "ct")
    wait_until(lambda: states(status_read.read(campaign), "finetune")["ct"] == "running")
    wait_until(lambda: "/500 step" in said(status_read.read(campaign)))
    assert figures.stages(status_read.read(campaign))["finetune"].spent > 0


def generate_all(trial: Trial) -> Campaign:
    campaign = trial.prepare_short()
    for planned in campaign.plan:
        if planned.task.stage != "evaluate":
            trial.work(*planned.key)
    return campaign


def test_done_markers_carry_the_figures(trial: Trial) -> None:
    campaign = trial.prepare_short()
    for planned in campaign.plan:
        if planned.task.stage != "evaluate":
            trial.work(*planned.key)
    block = campaign.directory.block("filtered", "CT", 0)
    items = [
        {"file": "a.png", "bytes": 4, "accepted": True, "attempts": 3, "unfamiliar": True},
        {"file": None, "accepted": False, "attempts": 8, "unfamiliar": None},
    ]
    disk.write_atomic(block / "manifest.jsonl", "".join(json.dumps(item) + "\n" for item in items))
    shard = campaign.plan.by_key["generate", "ct-00000"]
    markers.write_done(campaign, shard, {"attempts": 2, "seconds": 1.0})
    status = status_read.read(campaign)
    filtered = figures.images(status)["filtered"]
    assert (filtered.asked, filtered.made, filtered.accepted, filtered.candidates) == (2, 1, 1, 11)
    assert (
        "filtered  1 of 2 images accepted, 11 attempts, 11.00 per accepted image, 1 unfamiliar to the Selector"
        in said(status)
    )
    assert figures.stages(status)["generate"].attempts == 2
    assert disk.read_json(campaign.directory.done(*shard.key))["spent"] > 0
    its = figures.efficiency(status)
    assert its.seconds["start_up"] > 0
    facts = as_json.as_dict(status, str)["efficiency"]
    assert sum(facts["seconds"].values()) == pytest.approx(facts["allocated"])
    assert sum(facts["shares"].values()) == pytest.approx(1)
    [line] = [line for line in said(status).splitlines() if line.startswith("spent ")]
    percents = [int(part.split()[-2]) for part in line.partition(": ")[2].partition(";")[0].split(", ")]
    assert sum(percents) == 100


@pytest.mark.parametrize("damage", ["lost", "torn", "stale"])
def test_markers_are_the_truth_and_their_summary_is_a_hint(trial: Trial, damage: str) -> None:
    campaign = generate_all(trial)
    path = trial.root / "tasks/generate/done.jsonl"
    text = path.read_text()
    path.unlink() if damage == "lost" else path.write_text(
        text[:20] if damage == "torn" else text.replace('"fingerprint": "', '"fingerprint": "0')
    )
    assert markers.done_facts(campaign).keys() == {planned.key for planned in campaign.plan} - {("evaluate", "all")}
    path.write_text(text)
    campaign.directory.done("generate", "ct-00000").unlink()
    assert ("generate", "ct-00000") not in markers.done_facts(campaign)


def test_the_newest_line_of_a_summary_counts(trial: Trial) -> None:
    campaign = trial.prepare()
    for number in (1, 2):
        done_index.append(campaign.directory, "finetune", "ct", {"fingerprint": str(number), "outputs": [1, 2, 3]})
    assert done_index.read(campaign.directory, "finetune") == {"ct": {"task": "ct", "fingerprint": "2"}}


def test_time_left_follows_from_what_done_tasks_took(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    assert figures.stages(status_read.read(campaign))["finetune"].left is None
    trial.work("finetune", "ct")
    marker = disk.read_json(campaign.directory.done("finetune", "ct"))
    done_index.append(campaign.directory, "finetune", "ct", {**marker, "spent": 600.0})
    assert figures.stages(status_read.read(campaign))["finetune"].left is None  # nothing runs
    slurm.queue("10_1|RUNNING|None|n1||1|trial-finetune")
    its = figures.stages(status_read.read(campaign), {"finetune": 900.0})["finetune"]
    assert (its.spent, its.expected, its.left) == (600.0, 900.0, 600.0)
    trial.prepare(finetune__gpus=2)
    its = figures.stages(status_read.read(campaign_file.open_campaign(trial.root)))["finetune"]
    assert (its.spent, its.left) == (1200.0, 600.0), "of both GPUs, and until it is done"


def test_the_status_for_scripts(trial: Trial, slurm: Slurm) -> None:
    campaign = queued(trial)
    trial.script({"finetune ct": ["crash:1"]})
    trial.work("finetune", "ct")
    disk.write_atomic(campaign.directory.log("finetune", "ct"), "one\ntwo\n")
    slurm.queue("10_1|RUNNING|None|n1||1|trial-finetune")
    facts: dict[str, Any] = json.loads(
        json.dumps(as_json.as_dict(status_read.read(campaign), lambda words: f"x {words}"))
    )
    assert (facts["schema"], facts["cluster"], facts["exit_code"]) == (1, "slurm", 1)
    assert facts["next"] == {"why": "once the cause is fixed", "command": "x resume"}
    assert facts["stages"]["finetune"]["states"]["failed"] == 1
    assert facts["images"]["baseline"] == {"asked": 4, "made": 0, "accepted": 0, "candidates": 0, "unfamiliar": 0}
    tasks = {(task["stage"], task["task"]): task for task in facts["tasks"]}
    assert tasks["finetune", "ct"]["failure"]["error"] == "ValueError"
    assert tasks["finetune", "ct"]["last_line"] == "two"
    assert facts["efficiency"]["allocated"] > 0, "a failed attempt took its time"
    assert (tasks["finetune", "oct"]["state"], tasks["finetune", "oct"]["job"]) == ("running", "10_1")
    assert tasks["generate", "ct-00000"]["by"] == [{"stage": "finetune", "task": "ct"}]


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_goes_on_until_nothing_more_happens(trial: Trial, terminal: bool) -> None:
    campaign = trial.prepare_short()
    looks = iter([False, False, True, True, None])

    def read() -> Status:
        if (taken := next(looks)) is None:
            return status_read.read(campaign)
        if taken:
            trial.work("finetune", "ct")
        with locks.exclusive(campaign.directory.ledger):
            return status_read.read(campaign)

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    assert as_text.watch(console, read, lambda words: f"launch {words}", 0.01) == 75
    shown = stream.getvalue()
    assert ("\x1b[" in shown) == terminal
    if not terminal:
        lines = [line[9:] for line in shown.splitlines() if line[2:3] == ":"]
        assert lines == ["4 pending", "1 done, 3 pending", "1 done, 3 idle"]
    assert "to continue: launch resume" in shown


def test_ctrl_c_leaves_a_watch_with_the_states_exit_code(trial: Trial) -> None:
    campaign = trial.prepare_short()
    looks = iter([True])

    def read() -> Status:
        if not next(looks, False):
            raise KeyboardInterrupt
        with locks.exclusive(campaign.directory.ledger):
            return status_read.read(campaign)

    assert as_text.watch(Console(file=io.StringIO()), read, lambda words: words, 0.01) == 75


def test_a_campaign_of_somebody_else_is_not_judged_by_ones_own_queue(
    trial: Trial, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = queued(trial)
    monkeypatch.setattr(os, "getuid", lambda: campaign.directory.ledger.stat().st_uid + 1)
    status = status_read.read(campaign)
    assert {*states(status, "finetune").values()} == {"unknown"}
    assert "squeue lists your own only" in said(status)
    assert slurm.asked("squeue") == 0


def test_a_purged_directory_of_records_is_no_error(trial: Trial) -> None:
    campaign = trial.prepare()
    trial.work("finetune", "ct")
    shutil.rmtree(trial.root / "tasks")
    ledger.record(campaign.directory.ledger, ledger.SUBMITTED)
    assert {*states(status_read.read(campaign), "finetune").values()} == {"idle"}
