"""`medsyn list`: the campaigns below a folder, whatever state they are in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.__main__ import COMMANDS
from medsyn.campaign.state import campaign_file, locks
from medsyn.campaign.status import overview
from medsyn.cli import app
from medsyn.stage import CampaignDirectory
from tests.helpers.fake_slurm import Slurm
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial


@pytest.fixture
def runs(trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six tasks' campaign that is done, copies of it in other states, one claimed, one damaged, and other folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    runs = tmp_path / "runs"
    trial.prepare_short(campaign__name="first")
    runs.mkdir()
    shutil.copytree(trial.root, runs / "deep" / "er" / "waiting")
    trial.script({"rlhf-stage1 all": ["input"]})
    for key in (("finetune", "ct"), ("rlhf-stage1", "all")):
        trial.work(*key)
    shutil.copytree(trial.root, runs / "failed")
    trial.script({})
    for planned in trial.campaign().plan:
        trial.work(*planned.key)
    shutil.copytree(trial.root, runs / "finished")
    shutil.copytree(trial.root, runs / "finished" / "work" / "inside")  # no campaign of the user's
    claimed = CampaignDirectory(disk.make_directory(runs / "claimed"))
    campaign_file.claim(claimed)
    (runs / "damaged").mkdir()
    (runs / "damaged" / "campaign.json").write_text("{")
    (runs / "empty" / ".hidden").mkdir(parents=True)
    shutil.copytree(trial.root, runs / "empty" / ".hidden" / "campaign")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(trial.root, tmp_path / "elsewhere" / "linked")
    (runs / "link").symlink_to(tmp_path / "elsewhere" / "linked")
    (runs / "loop").symlink_to(runs)
    (runs / "broken").symlink_to("nowhere")
    return runs


def listed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert app.dispatch("medsyn", COMMANDS, ["list", "--json", *map(str, words)]) == 0
    return {Path(one["directory"]).name: one for one in json.loads(capsys.readouterr().out)}


def states(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, str]:
    return {name: one["state"] for name, one in listed(capsys, *words).items()}


def test_every_campaign_below_is_named_whatever_its_state(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(capsys) == {
        "waiting": "stopped",
        "failed": "failed",
        "finished": "done",
        "claimed": "not prepared",
        "damaged": "damaged",
        "link": "done",
    }
    found = listed(capsys, runs / "failed")["failed"]
    assert found["tasks"] == {"all": 4, "done": 1, "failed": 1, "queued": 0}
    assert (found["campaign"], found["directory"], found["problem"]) == ("first", str(runs / "failed"), None)
    assert abs(found["changed"] - time.time()) < 300
    assert states(capsys, runs / "deep", runs / "deep" / "er") == {"waiting": "stopped"}


def test_for_people(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(runs / "finished" / "campaign.json", (0, 0))
    assert app.dispatch("medsyn", COMMANDS, ["list"]) == 0
    out, err = capsys.readouterr()
    rows = {line.split()[-1]: line for line in out.splitlines() if "runs/" in line}
    assert "failed" in rows["runs/failed"] and "1 of 4 done, 1 failed" in rows["runs/failed"]
    assert "4 of 4 done" in rows["runs/finished"] and time.strftime("%Y-%m-%d") in rows["runs/finished"]
    assert "not prepared" in rows["runs/claimed"]
    assert rows.keys() == {
        f"runs/{name}" for name in ("deep/er/waiting", "failed", "finished", "claimed", "damaged", "link")
    }
    reason = "is damaged, or was not written by medsyn: choose another campaign.name or campaign.dir"
    assert err == f"warning: runs/damaged: {reason}\n"


def test_the_one_that_changed_last_comes_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk.write_json(CampaignDirectory(runs / "failed").heartbeat("finetune", "ct"), {})
    later = time.time() + 60
    os.utime(runs / "failed" / "tasks" / "finetune" / "beat", (later, later))
    assert next(iter(listed(capsys))) == "failed"


@pytest.mark.parametrize("words", [[], ["nothing"]])
def test_where_there_are_none(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    assert app.dispatch("medsyn", COMMANDS, ["list", *words]) == 0
    assert capsys.readouterr().out == f"no campaigns below {words[0] if words else 'runs'}\n"
    assert listed(capsys, *words) == {}
    assert app.dispatch("medsyn", COMMANDS, ["list", "none"]) == 65
    assert capsys.readouterr().err == "none: there is no such folder\n"


def test_a_launcher_at_work_and_jobs_in_the_queue(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    slurm = Slurm(tmp_path / "slurm")
    assert states(capsys)["waiting"] == "stopped"
    assert slurm.asked("squeue") == 0  # nothing was ever handed to Slurm
    for name, path in (
        ("waiting", runs / "deep/er/waiting"),
        ("failed", runs / "failed"),
        ("finished", runs / "finished"),
    ):
        for event in ("queueing", "queued", "released"):
            facts = {"event": event, "round": "r", "name": name, "kind": "tasks", "stage": "finetune", "job": "7"}
            disk.append_jsonl(path / "ledger.jsonl", facts | {"tasks": ["ct"]})
    slurm.queue("7|PENDING|Priority|||1|waiting", "8_0|RUNNING|None|n1||1|failed", "9|PENDING|||x|1|stranger")
    with locks.exclusive(runs / "failed" / "ledger.jsonl"):
        found = listed(capsys)
    assert {name: (one["state"], one["tasks"]["queued"]) for name, one in found.items() if one["campaign"]} == {
        "waiting": ("queued", 1),
        "failed": ("running", 1),
        "finished": ("done", 0),
        "link": ("done", 0),
    }
    assert slurm.asked("squeue") == 1
    slurm.queue(code=1)
    assert app.dispatch("medsyn", COMMANDS, ["list"]) == 0
    assert "warning: Slurm: it was not asked successfully (squeue: Unable" in capsys.readouterr().err


def test_a_record_of_another_version_and_one_that_cannot_be_read(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = runs / "failed" / "campaign.json"
    facts = disk.read_json(path)
    path.write_text(json.dumps(facts | {"config": {**facts["config"], "future": 1}}))
    assert listed(capsys)["failed"]["problem"] == "there is no such key"
    disk.append_jsonl(runs / "finished" / "ledger.jsonl", {"event": "queued", "round": "r"})
    assert listed(capsys)["finished"]["problem"] == "its records are damaged"
    path.unlink()
    path.mkdir()
    assert "failed" not in states(capsys)

    def unreadable(*_: Any) -> bool:
        raise PermissionError(13, "Permission denied", "ledger.jsonl")

    monkeypatch.setattr(overview.locks, "is_held", unreadable)
    assert listed(capsys)["waiting"]["problem"] == "cannot be read: Permission denied"


@pytest.mark.parametrize("words", [["list"], ["status", "runs/failed"], ["logs", "runs/failed", "finetune"]])
def test_it_imports_nothing_heavy_and_neither_does_a_look_at_one(runs: Path, words: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['medsyn', *{words!r}]\n"
        "from medsyn.__main__ import main; main()\n"
        "print([n for n in ('torch', 'pandas', 'numpy', 'submitit') if n in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    said = subprocess.run(words, capture_output=True, text=True, check=False, cwd=runs.parent, env=environment)
    assert said.stdout.endswith("[]\n"), said.stderr
