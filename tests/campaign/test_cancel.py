from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.campaign import cancel, guards
from medsyn.campaign.slurm import queue
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.state import ledger, locks
from medsyn.campaign.status import read
from medsyn.errors import InputError, SlurmError
from tests.helpers.trial import Trial, wait_until

SHORT: dict[str, Any] = {"data__modalities": ["CT"], "training__stage": 1}  # as `Trial.prepare_short`


def test_the_launcher_at_work_is_asked_to_stop_and_its_tasks_save(trial: Trial) -> None:
    trial.prepare_short()
    trial.script({"finetune ct": ["steps:200"]})
    process = trial.start("fake_launcher", "2")
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
