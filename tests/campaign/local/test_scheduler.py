"""The local scheduler with real workers, in a process of its own: order, failures, kills, and going on after them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from medsyn import disk
from medsyn.__main__ import COMMANDS
from medsyn.campaign.local import scheduler
from medsyn.campaign.local.live_table import Display
from medsyn.campaign.local.processes import Program
from medsyn.campaign.plan import machine
from medsyn.campaign.state import locks
from medsyn.campaign.status import as_json, read
from medsyn.cli import app
from medsyn.errors import InputProblems
from tests.helpers.fake_stages import FUNCTIONS
from tests.helpers.trial import Trial, wait_until

ALL = {
    *("finetune ct", "finetune oct", "rlhf-stage1 all", "rlhf-stage2 ct", "rlhf-stage2 oct"),
    *("generate ct-00000", "generate oct-00000", "evaluate all"),
}
STAGE1_FAILS = {"rlhf-stage1 all": ["input"]}
SHORT = {"finetune ct", "rlhf-stage1 all", "generate ct-00000", "evaluate all"}


def ledger(trial: Trial) -> list[dict[str, object]]:
    return list(disk.read_jsonl(trial.campaign().directory.ledger))


@pytest.fixture(params=["forks", "new processes"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to start a task's process."""
    if request.param == "new processes":
        monkeypatch.setenv("MEDSYN_FORK", "0")


def test_a_campaign_runs_through_in_order_and_says_where_everything_is(trial: Trial, either: None) -> None:
    trial.prepare()
    code, output = trial.submit()
    assert code == 0, output
    assert "imports torch itself" not in output
    assert trial.done() == ALL
    calls = trial.calls()
    assert sorted(calls) == sorted(ALL)  # each once
    order = {name: calls.index(name) for name in ALL}
    for planned in trial.campaign().plan:
        for other in (*planned.needs, *planned.after):
            assert order[" ".join(other)] < order[" ".join(planned.key)]
    assert f"report    {trial.root}/report.html" in output
    assert f"campaign  {trial.root}" in output

    code, output = trial.submit()
    assert (code, "everything is done; nothing to do" in output) == (0, True)
    assert len(trial.calls()) == len(ALL)


def test_what_happened_is_in_the_ledger(trial: Trial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["save", "input"]})
    trial.submit()
    lines = [line for line in ledger(trial) if line.get("stage") in (None, "finetune")]
    assert [(line["event"], line.get("attempt"), line.get("exit_code")) for line in lines] == [
        ("submitted", None, None),
        ("started", 1, None),
        ("ended", 1, 75),
        ("started", 2, None),
        ("ended", 2, 65),
    ]


def test_no_more_workers_at_once_than_allowed(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["input"], "finetune oct": ["input"], **STAGE1_FAILS})
    trial.submit(parallel=1)
    assert [line["event"] for line in ledger(trial)] == ["submitted", *["started", "ended"] * 3]


def test_once_the_chosen_tasks_are_done_the_next_command_is_for_the_rest(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    trial.prepare_short()
    trial.work("finetune", "ct")
    assert app.dispatch("medsyn", COMMANDS, ["resume", str(trial.root), "--cluster=local", "--only=finetune:ct"]) == 0
    (hint,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    assert hint.endswith(f"resume {trial.root} --cluster local")


@pytest.mark.parametrize(("chosen", "waits"), [("generate", "rlhf-stage1 all"), ("evaluate", "generate ct-00000")])
def test_a_chosen_task_that_waits_for_another_says_for_what(trial: Trial, chosen: str, waits: str) -> None:
    campaign = trial.prepare_short()
    with locks.exclusive(campaign.directory.ledger), pytest.raises(InputProblems, match=f"{waits}, which is not done"):
        scheduler.run(campaign, Display(campaign, Console(), "again"), only=campaign.plan.select([chosen]))
    assert trial.calls() == []


def test_a_failed_modality_stops_its_own_branch_only(trial: Trial) -> None:
    told = trial.data / "told.json"
    trial.prepare(training__stage=1, cluster__notify=shlex.join(["sh", "-c", 'cat >> "$0"', str(told)]))
    trial.script({"finetune oct": ["crash:hard"]})
    code, output = trial.submit()
    assert code == 1
    facts = disk.read_json(told)
    assert [facts[name] for name in ("event", "done", "failed", "blocked")] == ["failed", 4, 1, 1]
    assert trial.done() == SHORT
    assert trial.calls().count("finetune oct") == 2  # a crash is tried once more, and not a third time
    assert "finetune oct failed ValueError: boom hard" in output
    assert "the second failure at the same place" in output  # the end of its log
    assert "generate oct-00000 blocked by finetune oct" in output
    assert f"log: {trial.root}/tasks/finetune/log/oct.log" in output
    assert "next      once the cause is fixed: submit again" in output

    trial.script({})
    code, output = trial.submit()
    assert code == 0, output
    assert trial.done() == SHORT | {"finetune oct", "generate oct-00000"}
    assert trial.calls().count("evaluate all") == 2  # there is more to evaluate now
    assert trial.calls().count("rlhf-stage1 all") == 1


def test_failures_that_would_happen_again_are_not_tried_again(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune ct": ["stuck"], "finetune oct": ["disk-full"], **STAGE1_FAILS})
    assert trial.submit()[0] == 1
    codes = {line["task"]: line["exit_code"] for line in ledger(trial) if "exit_code" in line}
    assert codes == {"ct": 70, "oct": 78, "all": 65}
    assert sorted(trial.calls()) == ["finetune ct", "finetune oct", "rlhf-stage1 all"]


def test_when_everything_fails_nothing_else_starts(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune oct": ["input"], "finetune ct": ["input"], **STAGE1_FAILS})
    code, output = trial.submit()
    assert code == 65  # bad input is all it failed on
    assert "evaluate all blocked by finetune ct, finetune oct, rlhf-stage1 all" in output
    assert sorted(trial.calls()) == ["finetune ct", "finetune oct", "rlhf-stage1 all"]
    trial.script({"finetune oct": ["input"], "finetune ct": ["stuck"], **STAGE1_FAILS})
    assert trial.submit()[0] == 1


def test_saving_crashing_elsewhere_and_being_killed_are_each_tried_again(trial: Trial, either: None) -> None:
    trial.prepare_short()
    actions = ["save", "kill:SIGKILL", "crash:here", "crash:there", "kill:SIGSEGV", "input"]
    trial.script({"finetune ct": actions})
    output = trial.submit()[1]
    codes = [line["exit_code"] for line in ledger(trial) if "exit_code" in line and line["stage"] == "finetune"]
    assert codes == [75, -signal.SIGKILL, 1, 1, -signal.SIGSEGV, 65]
    assert "killed by SIGKILL; restarting it" in output
    assert "saved and left; restarting it" in output


def test_a_task_that_never_gets_further_ends_when_max_requeues_is_used_up(trial: Trial) -> None:
    trial.prepare(cluster__max_requeues=2)
    trial.script({"finetune ct": ["save"], "finetune oct": ["kill:SIGKILL"], **STAGE1_FAILS})
    code, output = trial.submit()
    assert code == 1
    assert Counter(trial.calls()) == {"finetune ct": 3, "finetune oct": 3, "rlhf-stage1 all": 1}
    assert "cluster.max_requeues is used up" in output
    assert "finetune oct failed killed by SIGKILL" in output
    assert "generate ct-00000 blocked by finetune ct, rlhf-stage1 all" in output


def start_counting(trial: Trial, then: Mapping[str, list[str]] = STAGE1_FAILS) -> subprocess.Popen[str]:
    """A run whose only worker counts to 40, caught while it does."""
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:40"], **then})
    process = trial.start("fake_launcher", "1")
    wait_until(lambda: trial.steps("finetune ct"))
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)])
def test_a_stopped_run_lets_its_workers_save(trial: Trial, number: signal.Signals, code: int) -> None:
    process = start_counting(trial)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert "stopping: waiting for 1 task to save" in output
    assert "next      to continue: submit again" in output
    lines = list(disk.read_jsonl(trial.campaign().directory.attempts("finetune", "ct")))
    assert lines[-1]["exit_code"] == 75


def test_a_second_ctrl_c_does_not_wait(trial: Trial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["deaf"]})
    process = trial.start("fake_launcher", "2")
    wait_until(trial.calls)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert not locks.is_held(trial.campaign().directory.attempts("finetune", "ct"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_stop_or_a_kill_the_next_run_goes_on_and_repeats_nothing(trial: Trial, number: signal.Signals) -> None:
    process = start_counting(trial)
    process.send_signal(number)
    process.wait(timeout=30)
    assert "rlhf-stage1 all failed" in trial.submit()[1]
    assert trial.steps("finetune ct") == list(range(40))
    assert "finetune ct" in trial.done()


def test_when_the_process_that_is_forked_is_killed_no_task_is_lost(trial: Trial) -> None:
    process = start_counting(trial, then={})
    (worker,) = (line["pid"] for line in disk.read_jsonl(trial.root / "calls.jsonl"))
    (server,) = {child.pid for child in psutil.Process(process.pid).children()} - {worker}
    os.kill(server, signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert Counter(trial.calls()) == Counter(SHORT)
    assert trial.steps("finetune ct") == list(range(40))
    assert "every further task imports torch itself" in output


def test_a_worker_that_ends_while_no_scheduler_lives_counts(trial: Trial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:40"], **STAGE1_FAILS})
    by_hand = trial.start("fake_worker", "finetune", "ct")
    wait_until(lambda: trial.steps("finetune ct"))
    trial.submit()  # its own worker waits for the one by hand, and finds the task done
    assert by_hand.wait(timeout=10) == 0
    assert "finetune ct" in trial.done()
    assert Counter(trial.calls())["finetune ct"] == 1


def test_two_submissions_at_once_are_one(trial: Trial) -> None:
    first = start_counting(trial)
    code, output = trial.submit()
    assert (code, "another process" in output, f"process {first.pid}" in output) == (75, True, True)
    assert trial.calls() == ["finetune ct"]


def work_through(trial: Trial) -> None:
    for planned in trial.campaign().plan:
        assert trial.work(*planned.key)[0] == 0


def test_a_result_that_was_deleted_is_made_again_and_only_that(trial: Trial) -> None:
    trial.prepare_short()
    work_through(trial)
    (trial.campaign().directory.block("baseline", "CT", 0) / "a.png").unlink()
    code, output = trial.submit()
    assert code == 0, output
    assert Counter(trial.calls()) == Counter([*SHORT, "generate ct-00000"])


def test_other_shards_of_the_same_blocks_are_another_deal_not_another_result(trial: Trial) -> None:
    trial.write_tables(prompts=4)
    trial.prepare_short()
    work_through(trial)
    trial.prepare_short(generation__blocks_per_shard=2)
    assert trial.done() == {"finetune ct", "rlhf-stage1 all"}
    work_through(trial)
    assert trial.done() == SHORT


def test_a_worker_that_says_done_without_a_marker_has_failed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = trial.prepare()
    said: list[str] = []

    class Silent:
        def __getattr__(self, name: str) -> object:
            return lambda *arguments: said.append(" ".join(str(argument) for argument in arguments))

        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    code = scheduler.run(campaign, Silent(), 2, Program("this", (), FUNCTIONS))  # type: ignore[arg-type]
    assert code == 1
    assert any("ended as if done, but it is not done" in line for line in said)


def test_models_are_loaded_before_the_fork_for_several_tasks_of_a_modality_and_no_gpu(trial: Trial) -> None:
    trial.write_tables(prompts=6)
    trial.prepare(generation__blocks_per_shard=1)
    campaign = trial.campaign()
    its = [planned for planned in campaign.plan.by_stage["generate"] if planned.task.modality == "CT"]
    assert len(its) == 3
    keys = {planned.key for planned in campaign.plan.tasks}

    def like(which: int, gpus: list[str], done: int) -> Any:
        finished = {planned.key for planned in its[:done]}
        its_scheduler = scheduler._Scheduler(campaign, 1, None, None, gpus, finished, keys)  # type: ignore[arg-type]
        return its_scheduler._like(its[which])

    for_all = (str(campaign.directory.root), *its[0].key)
    assert like(0, [], 0) == like(1, [], 0) == like(2, [], 1) == for_all
    assert like(2, [], 2) == () == like(1, ["0"], 0)


def test_gpus_are_dealt_round_robin(trial: Trial) -> None:
    trial.prepare(device__use_cuda=True)
    trial.script({"finetune ct": ["input"], "finetune oct": ["input"]})
    trial.submit(CUDA_VISIBLE_DEVICES="3,5")
    gpus = {line["task"]: line["gpu"] for line in disk.read_jsonl(trial.root / "calls.jsonl")}
    assert {gpus["finetune ct"], gpus["finetune oct"]} == {"3", "5"}


@pytest.mark.parametrize(
    ("gpus", "parallel", "expected"), [(2, 1, {"3,5"}), ("auto", 1, {"3,5"}), ("auto", 2, {"3", "5"})]
)
def test_a_finetune_task_gets_the_gpus_it_shares_its_batches_over(
    gpus: int | str, parallel: int, expected: set[str], trial: Trial
) -> None:
    """`auto` shares them out among the tasks that run at once; other stages have one."""
    trial.prepare(device__use_cuda=True, finetune__gpus=gpus)
    trial.script({"finetune ct": ["steps:30"], "finetune oct": ["steps:30"]})  # so long that both are at work at once
    trial.submit(parallel, CUDA_VISIBLE_DEVICES="3,5")
    calls = disk.read_jsonl(trial.root / "calls.jsonl")
    of_stage: dict[bool, set[str]] = {True: set(), False: set()}
    for line in calls:
        of_stage[line["task"].startswith("finetune")].add(line["gpu"])
    assert of_stage[True] and of_stage[True] <= expected  # with one of its own, it may come twice to the same
    assert of_stage[False] <= {"3", "5"}


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: TITAN Xp (UUID: GPU-a)'\necho '  MIG 1g (UUID: b)'\necho 'GPU 1: TITAN Xp'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert machine.visible_gpus() == []


def test_status_tells_what_runs_what_failed_and_what_is_blocked(trial: Trial) -> None:
    trial.prepare()
    trial.script({"finetune oct": ["input"], "finetune ct": ["steps:200"]})
    process = trial.start("fake_launcher", "2")
    directory = trial.campaign().directory
    wait_until(lambda: directory.failed("finetune", "oct").is_file() and trial.steps("finetune ct"))
    wait_until(lambda: read.read(trial.campaign()).by_state["running"])
    found = read.read(trial.campaign())
    facts = as_json.as_dict(found, str)
    states = {state: count for state, count in facts["stages"]["finetune"]["states"].items() if count}
    tasks = {f"{task['stage']} {task['task']}": task for task in facts["tasks"]}
    assert (found.exit_code, states) == (1, {"running": 1, "failed": 1})
    assert tasks["finetune ct"]["state"] == "running"
    assert tasks["finetune oct"]["failure"]["message"] == "table.csv, line 3: row 3 is wrong"
    assert tasks["generate oct-00000"]["by"] == [{"stage": "finetune", "task": "oct"}]
    process.terminate()
    process.wait(timeout=30)
    assert not read.read(trial.campaign()).by_state["running"]
