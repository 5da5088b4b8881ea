"""Finding, showing and following what tasks printed."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.status import logs, read, show_logs
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial, wait_until

LAUNCH = ROOT / "launch.py"


@pytest.mark.parametrize("count", [1, 3, 2000, 9999])
def test_the_tail_of_a_file_is_its_last_lines(tmp_path: Path, count: int) -> None:
    path = tmp_path / "log"
    lines = [f"{number} {'é' * 40}" for number in range(3000)]  # more than one piece
    path.write_text("\n".join(lines) + "\n")
    assert logs.tail(path, count) == lines[-count:]


def test_a_tail_without_a_file_or_without_an_end(tmp_path: Path) -> None:
    assert logs.tail(tmp_path / "none", 5) == []
    (tmp_path / "log").write_text("one\n\n\n\ntwo")
    assert logs.tail(tmp_path / "log", 9) == ["one", "", "", "", "two"]
    assert logs.last_lines(tmp_path / "log", 2) == ["one", "two"]
    assert logs.tail(tmp_path / "log", 9, end=4) == ["one"]


def follow(path: Path, *events: object, position: int = 0) -> str:
    """What following prints while things happen, one between two looks each; the last look is after all of them."""
    waiting = list(events)
    over = lambda: not waiting  # noqa: E731
    where = lambda: path if path.is_file() else None  # noqa: E731
    return "".join(logs.follow(where, over, lambda: waiting.pop(0)(), position))  # type: ignore[operator]


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)


def test_following_prints_what_is_appended_behind_a_position(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    letter = "é".encode()
    shown = follow(
        path, lambda: append(path, b"new " + letter[:1]), lambda: append(path, letter[1:] + b"\n"), position=4
    )
    assert shown == "new é\n"


def test_following_waits_for_a_file_and_starts_anew_where_it_is_replaced_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    shown = follow(
        path,
        lambda: append(path, b"first\n"),
        lambda: disk.write_atomic(path, "replaced, and longer\n"),
        lambda: path.write_text("cut\n"),
    )
    assert shown == "first\nreplaced, and longer\ncut\n"


def test_where_the_task_said_nothing_slurms_batch_output_is_its_log(trial: Trial) -> None:
    campaign = trial.prepare()
    for job in ("8", "9"):
        trial.queued(f"trial-{job}", "finetune", ("ct", "oct"), job)
        disk.write_atomic(trial.root / f"tasks/slurm/trial-{job}/{job}_1_0_log.out", "started\n")
        disk.write_atomic(trial.root / f"tasks/slurm/trial-{job}/{job}_1_0_log.err", f"srun: error {job}\n")
    disk.write_atomic(trial.root / "tasks/slurm/trial-9/9_1_0_log.err", "")
    key = ("finetune", "oct")
    assert read.read(campaign).log(("finetune", "ct")) is None
    assert read.read(campaign).log(key) == trial.root / "tasks/slurm/trial-9/9_1_0_log.out"
    disk.write_atomic(campaign.directory.log(*key), "mine\n")
    assert read.read(campaign).log(key) == campaign.directory.log(*key)


def test_a_stages_overview_has_states_logs_and_last_lines(trial: Trial) -> None:
    campaign = trial.prepare()
    trial.work("finetune", "ct")
    disk.write_atomic(campaign.directory.log("finetune", "ct"), "one\n[bold]two[/nothing]\n\n")
    stream = io.StringIO()
    show_logs.overview(Console(file=stream, width=150), read.read(campaign), [("finetune", "ct"), ("finetune", "oct")])
    rows = [line for line in stream.getvalue().splitlines() if " ct " in line or " oct " in line]
    assert ["done" in rows[0], "tasks/finetune/log/ct.log" in rows[0], "[bold]two[/nothing]" in rows[0]] == [True] * 3
    assert "idle" in rows[1]


def launch(trial: Trial, *arguments: str) -> tuple[int, str, str]:
    path = trial.data / "campaign.yaml"
    path.write_text(configuration.save(trial.config()))
    words = [sys.executable, str(LAUNCH), "logs", str(path), *arguments]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=trial.data)
    return result.returncode, result.stdout, result.stderr


def test_the_command_prints_a_task_a_stage_or_the_failures(trial: Trial) -> None:
    campaign = trial.prepare()
    trial.script({"finetune ct": ["crash:1"]})
    trial.work("finetune", "ct")
    disk.write_atomic(campaign.directory.log("finetune", "ct"), "".join(f"line {number}\n" for number in range(90)))
    assert launch(trial, "finetune:ct", "--lines", "2") == (0, "line 88\nline 89\n", "")
    assert launch(trial, "--all", "finetune:0", "cluster.max_parallel=3")[1].count("\n") == 90
    assert launch(trial, "finetune:oct") == (0, "", "finetune oct is idle and has no log yet\n")
    code, shown, _ = launch(trial)
    assert (code, "finetune ct failed: ValueError: boom 1" in shown, "    line 89\n" in shown) == (0, True, True)
    assert "tasks/finetune/log/ct.log" in launch(trial, "finetune")[1]
    assert launch(trial, "finetune:ct", "generate")[0] == 2
    code, _, error = launch(trial, "finetune", "--follow")
    assert (code, "--follow follows one task: name it as STAGE:TASK" in error) == (2, True)
    assert "there is no task 'mri'; the stage has 2: ct, oct" in launch(trial, "finetune:mri")[2]
    code, _, error = launch(trial, "tune")
    assert (code, error.count("\n"), "tune: this campaign has no such stage; it has finetune, " in error) == (
        65,
        1,
        True,
    )


def test_following_a_task_ends_with_it(trial: Trial) -> None:
    campaign = trial.prepare()
    trial.script({"finetune ct": ["steps:60"]})
    log = campaign.directory.log("finetune", "ct")
    worker = trial.start("fake_worker", "finetune", "ct")
    wait_until(campaign.directory.heartbeat("finetune", "ct").exists)
    worker.send_signal(signal.SIGSTOP)  # until the follower, which may take its time to start, has seen it at work
    disk.write_atomic(log, "begun\n")
    path = trial.data / "campaign.yaml"
    path.write_text(configuration.save(trial.config()))
    words = [sys.executable, str(LAUNCH), "logs", str(path), "finetune:ct", "--follow"]
    follower = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    trial.processes.append(follower)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "begun\n"
    append(log, b"more\n")
    assert follower.stdout.readline() == "more\n"
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(timeout=60) == 0
    rest, error = follower.communicate(timeout=60)
    assert (follower.returncode, rest, error) == (0, "", "finetune ct is done\n")
