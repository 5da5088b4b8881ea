"""`launch.py` on a campaign that exists, and what it shows."""

from __future__ import annotations

import io
import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.local.live_table import Display
from medsyn.campaign.plan import inputs
from medsyn.campaign.state import ledger, locks
from medsyn.campaign.status import as_text, read
from medsyn.campaign.tasks import settle
from medsyn.models import weights
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial

LAUNCH = ROOT / "launch.py"
REAL_FINGERPRINT = weights.weights_fingerprint


@pytest.fixture
def finished(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> tuple[Trial, Path]:
    """A campaign that is done, and its configuration file."""
    monkeypatch.setattr(inputs.weights, "weights_fingerprint", REAL_FINGERPRINT)
    trial.prepare_short()
    for planned in trial.campaign().plan:
        trial.work(*planned.key)
    path = trial.data / "campaign.yaml"
    path.write_text(configuration.save(trial.config(data__modalities=["CT"], training__stage=1)))
    return trial, path


def launch(command: str, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(LAUNCH), command, str(config), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_submitting_what_is_done_says_so_at_once(finished: tuple[Trial, Path]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = launch("submit", finished[1], "--cluster", "local")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert "everything is done; nothing to do" in result.stdout
    assert f"report    {finished[0].root}/report.html" in result.stdout
    assert after.ru_utime - before.ru_utime < 8
    assert not list(disk.read_jsonl(finished[0].root / "ledger.jsonl"))


def test_one_task_by_hand_is_the_same_worker_and_the_same_records(finished: tuple[Trial, Path]) -> None:
    trial, path = finished
    words = [sys.executable, "-m", "medsyn", "rlhf", str(path), "--stage", "1", "--task", "0"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "rlhf-stage1 all is already done\n"), result.stderr
    assert trial.calls().count("rlhf-stage1 all") == 1


def test_submitting_another_configuration_is_refused_by_key(finished: tuple[Trial, Path]) -> None:
    result = launch("submit", finished[1], "--cluster", "local", "finetune.max_train_steps=7")
    assert result.returncode == 65
    assert result.stderr.startswith(
        "configuration, finetune.max_train_steps: was 2000 and is now 7, but this campaign has results of finetune"
    )


def test_submitting_says_what_planning_warns_of(finished: tuple[Trial, Path]) -> None:
    trial, path = finished
    with (trial.data / "ratings.csv").open("a") as stream:
        stream.write("ct-0.png,1,CT,3,CT: finding 0\n")  # once more
    said = [launch(command, path, *more).stderr for command, *more in (("plan",), ("submit", "--cluster", "local"))]
    assert all("warning: " in one for one in said), said


def test_submitting_while_another_one_runs(finished: tuple[Trial, Path]) -> None:
    trial, path = finished
    ledger.record(trial.root / "ledger.jsonl", ledger.SUBMITTED)
    with locks.exclusive(trial.root / "ledger.jsonl"):
        result = launch("submit", path, "--cluster", "local")
    assert result.returncode == 75
    assert f"process {os.getpid()}) is at work on {trial.root}; try again" in result.stderr


def test_status_for_people_and_for_scripts(finished: tuple[Trial, Path]) -> None:
    trial, path = finished
    assert launch("status", path).returncode == 0
    trial.campaign().directory.done("evaluate", "all").unlink()
    result = launch("status", path)
    assert result.returncode == 75
    assert "next      to continue:" in result.stdout
    assert f"launch.py resume {path} --cluster local" in result.stdout
    facts = json.loads(launch("status", path, "--json").stdout)
    states = {
        stage: {state for state, count in its["states"].items() if count} for stage, its in facts["stages"].items()
    }
    assert (states["evaluate"], states["finetune"]) == ({"idle"}, {"done"})
    assert facts["directory"] == str(trial.root)


def test_watching_what_is_done_leaves_at_once(finished: tuple[Trial, Path]) -> None:
    path = str(finished[1])
    for words in ([path, "--watch"], ["--watch", path], [path, "--watch", "0.5", "cluster.max_parallel=3"]):
        line = [sys.executable, str(LAUNCH), "status", *words]
        result = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
        assert (result.returncode, " 4 done\n" in result.stdout) == (0, True), result.stderr
    assert launch("status", finished[1], "--watch", "--json").returncode == 2
    assert launch("status", finished[1], "--watch", "0").returncode == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_live_table_on_a_terminal_and_lines_in_a_log(trial: Trial, terminal: bool) -> None:
    campaign = trial.prepare()
    stream = io.StringIO()
    display = Display(campaign, Console(file=stream, force_terminal=terminal, width=120), "again")
    done = {("finetune", "oct")}
    with display:
        display.started(("finetune", "ct"))
        disk.write_json(campaign.directory.heartbeat("finetune", "ct"), {"step": 30, "total": 80, "unit": "step"})
        display.show(settle(campaign.plan, done, set()), [("finetune", "ct")])
        display.ended(("finetune", "ct"), "killed by SIGKILL; restarting it")
    shown = stream.getvalue()
    assert "finetune ct: killed by SIGKILL; restarting it after 0 s" in shown
    assert ("1/2" in shown and "30/80 step" in shown and "1 running" in shown) == terminal
    assert ("finetune ct: started" in shown) != terminal
    assert ("\x1b[" in shown) == terminal


def test_text_from_tasks_is_not_markup(trial: Trial) -> None:
    campaign = trial.prepare()
    trial.script({"finetune ct": ["crash:[bold]loud[/nothing]"]})
    trial.work("finetune", "ct")
    stream = io.StringIO()
    as_text.show(Console(file=stream, width=120), read.read(trial.campaign()), lambda name: "again [x]")
    assert "boom [bold]loud[/nothing]" in stream.getvalue()
    assert "again [x]" in stream.getvalue()
    assert campaign.directory.failed("finetune", "ct").is_file()


def test_a_live_table_survives_a_small_terminal(trial: Trial) -> None:
    trial.prepare_short()
    try:
        master, slave = pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal can be had here: {error}")
    words = [sys.executable, "-m", "tests.helpers.fake_launcher", str(trial.root), "2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40", "LINES": "6"}
    process = subprocess.Popen(words, stdout=slave, stderr=slave, env=environment, cwd=ROOT)
    trial.processes.append(process)  # type: ignore[arg-type]
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    assert process.wait(timeout=60) == 0, shown.decode(errors="replace")
    assert b"report.html" in shown
