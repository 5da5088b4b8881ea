from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.__main__ import COMMANDS
from medsyn.campaign import cancel, guards
from medsyn.campaign.slurm import queue
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.state import ledger, locks
from medsyn.campaign.status import read
from medsyn.cli import app
from medsyn.errors import InputError, SlurmError
from tests.helpers.trial import Trial, wait_until

SHORT: dict[str, Any] = {"data__modalities": ["CT"], "training__stage": 1}  # as `Trial.prepare_short`


def test_the_launcher_at_work_is_asked_to_stop_and_its_tasks_save(trial: Trial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:200"]})
    process = trial.start("fake_launcher", "1")
    wait_until(lambda: trial.steps("finetune ct"))
    said: list[str] = []
    assert cancel.launcher(trial.campaign().directory, said.append) == 1
    assert f"asked process {process.pid} to stop" in said[0]
    assert process.wait(timeout=20) == 75
    assert set(read.read(trial.campaign()).states.values()) == {"cancelled"}
    assert trial.submit()[0] == 0
    assert trial.steps("finetune ct") == list(range(200))


def test_nobody_is_signalled_when_nobody_holds_the_lock(trial: Trial) -> None:
    campaign = trial.prepare_short()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    disk.append_jsonl(campaign.directory.ledger, {"event": ledger.STARTED, "pid": stranger.pid, "time": 0})
    assert cancel.launcher(campaign.directory, print) == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_the_holder_of_a_lock_is_told_by_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert cancel.lock_holder(path) is None
    with locks.exclusive(path):
        assert cancel.lock_holder(path) == os.getpid()


def test_a_task_that_was_started_by_hand_is_asked_to_stop(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:400"]})
    process = trial.start("fake_worker", "finetune", "ct")
    wait_until(lambda: trial.steps("finetune ct"))
    assert app.dispatch("medsyn", COMMANDS, ["cancel", str(trial.root)]) == 0
    assert process.wait(timeout=20) == 75
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        f"asked process {process.pid}, finetune ct, to stop; waiting until it has saved",
        "cancelled",
    ]
    assert len(trial.steps("finetune ct")) < 400


def test_a_task_that_cannot_be_asked_from_here_is_named(
    trial: Trial, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = trial.prepare_short().directory
    disk.append_jsonl(directory.attempts("finetune", "ct"), {"event": "start", "time": 1, "host": "n7", "pid": 11})
    monkeypatch.setattr(cancel, "lock_holder", lambda path: None)
    with locks.exclusive(directory.attempts("finetune", "ct")):
        assert app.dispatch("medsyn", COMMANDS, ["cancel", str(trial.root)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("another process (n7, process 11) is at work on finetune ct; end it there\nnext")


def test_the_holder_has_the_file_open_and_not_only_one_of_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    with locks.exclusive(path):
        monkeypatch.setattr(Path, "samefile", lambda *_: False)  # as if the lock were on another file system
        assert cancel.lock_holder(path) is None


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, queue: str) -> Path:
    """squeue prints the file `queue`; scancel writes down what it is given and takes it out of the file."""
    folder.mkdir()
    (folder / "queue").write_text(queue)
    scripts = {"squeue": f"cat {folder}/queue", "scancel": f'echo "$@" >> {folder}/cancelled; : > {folder}/queue'}
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "cancelled"


def queued(trial: Trial, name: str, job: str) -> None:
    path = trial.campaign().directory.ledger
    for event in (on_record.QUEUEING, on_record.QUEUED):
        facts = {"name": name, "kind": "tasks", "stage": "finetune", "tasks": ["ct"], "job": job, "round": "r"}
        disk.append_jsonl(path, {"event": event, **facts})


def test_a_job_that_has_the_id_but_not_the_name_is_somebody_elses(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare_short()
    queued(trial, "medsyn-trial-finetune-r", "7")
    cancelled = fake_slurm(tmp_path / "bin", monkeypatch, "7|RUNNING|None|n1|(null)|1|somebodys\n")
    assert cancel.jobs(trial.campaign().directory, print) == 0
    assert not cancelled.exists()


def test_a_job_is_found_by_its_name_where_its_id_was_never_written_down(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare_short()
    path = trial.campaign().directory.ledger
    disk.append_jsonl(path, {"event": on_record.QUEUEING, "name": "medsyn-trial-finetune-r", "round": "r"})
    cancelled = fake_slurm(tmp_path / "bin", monkeypatch, "9_0|PENDING|Held|n1|(null)|1|medsyn-trial-finetune-r\n")
    assert cancel.jobs(trial.campaign().directory, print) == 1
    assert cancelled.read_text() == "--quiet 9\n"


@pytest.mark.parametrize("how", ["copied", "moved", "linked", "moved, and another campaign took its place"])
def test_the_jobs_of_the_campaign_that_this_is_a_copy_of_are_not_this_ones(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    trial.prepare_short()
    trial.queued("medsyn-trial-finetune-r", "finetune", ("ct",), "7")
    original, trial.root = trial.root, tmp_path / "there"
    cancelled = fake_slurm(tmp_path / "bin", monkeypatch, "7|RUNNING|None|n1|(null)|1|medsyn-trial-finetune-r\n")
    if how == "copied":
        shutil.copytree(original, trial.root)
    elif how == "linked":
        trial.root.symlink_to(original)
    else:
        original.rename(trial.root)
    if "another" in how:
        shutil.copytree(trial.root, original)
        (original / "ledger.jsonl").write_text("")
    is_copy = how == "copied"
    shown = read.read(trial.campaign())
    assert shown.states["finetune", "ct"] == ("idle" if is_copy else "running")
    assert shown.on_slurm
    assert app.dispatch("medsyn", COMMANDS, ["cancel", str(trial.root)]) == 0
    said = capsys.readouterr().out
    assert cancelled.exists() is not is_copy
    assert (f"this is a copy of {original}, whose jobs are left alone" in said) is is_copy
    assert ("nothing of this campaign is running or queued" in said) is is_copy
    assert "--cluster slurm" in said
    with contextlib.ExitStack() as held:  # a copy may run here while the original is in the queue
        assert guards.open_for_change(trial.config(**SHORT), here=True, keep=held).directory.root == trial.root


def test_a_controller_that_does_not_answer_is_said(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare_short()
    queued(trial, "medsyn-trial-finetune-r", "7")
    fake_slurm(tmp_path / "bin", monkeypatch, "")
    (tmp_path / "bin" / "squeue").write_text(
        "#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2; exit 1\n"
    )
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        cancel.jobs(trial.campaign().directory, print)


def test_a_job_of_another_name_is_no_task_of_the_campaign(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare_short()
    queued(trial, "medsyn-trial-finetune-r", "7")
    submitted = on_record.read(trial.campaign().directory.ledger)
    fake_slurm(tmp_path / "bin", monkeypatch, "7|RUNNING|None|n1|(null)|1|somebodys\n")
    assert not queue.view(submitted).tasks
    (tmp_path / "bin" / "queue").write_text("7|RUNNING|None|n1|(null)|1|medsyn-trial-finetune-r\n")
    assert queue.view(submitted).tasks


def test_a_campaign_in_slurms_queue_is_not_run_here_as_well(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trial.prepare_short()
    queued(trial, "medsyn-trial-finetune-r", "7")
    fake_slurm(tmp_path / "bin", monkeypatch, "7|RUNNING|None|n1|(null)|1|medsyn-trial-finetune-r\n")
    with pytest.raises(InputError, match="1 of its tasks are in Slurm's queue"):
        guards.open_for_change(trial.config(**SHORT), here=True)


def test_shards_are_not_dealt_anew_while_some_are_in_slurms_queue(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare_short()
    queued(trial, "medsyn-trial-finetune-r", "7")
    fake_slurm(tmp_path / "bin", monkeypatch, "7|RUNNING|None|n1|(null)|1|medsyn-trial-finetune-r\n")
    settings = SHORT | {"generation__blocks_per_shard": 2}
    guards.open_for_change(trial.config(**settings), here=False)  # fine-tuning has no shards
    trial.queued("medsyn-trial-generate-r", "generate", ("ct-00000",), "8")
    (tmp_path / "bin" / "queue").write_text("8|PENDING|None||(null)|1|medsyn-trial-generate-r\n")
    guards.open_for_change(trial.config(**settings, cluster__max_parallel=7), here=False)
    with pytest.raises(InputError, match=r"generation.blocks_per_shard: it re-shards the campaign, but generate jobs"):
        guards.open_for_change(trial.config(**settings | {"generation__blocks_per_shard": 3}), here=False)


def test_a_campaign_of_somebody_else_is_theirs(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = trial.prepare_short()
    guards.require_own(campaign.directory)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(InputError, match="and only its owner can change it"):
        guards.require_own(campaign.directory)
