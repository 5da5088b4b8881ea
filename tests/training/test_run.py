from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.stage import CampaignDirectory, Control, Saved, Task
from medsyn.training import run as runs
from medsyn.training.run import TrainingRun

TASK = Task("finetune", 0, "ct", "CT")


class Listening(Control):
    """Notes what was on disk when a step was reported."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory, self.seen = directory, []  # type: ignore[var-annotated]

    def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
        self.seen.append((step, total, numbers, sorted(path.name for path in self.directory.rglob("step-*"))))


def open_(root: Path, control: Control | None = None, **provenance: Any) -> TrainingRun:
    return TrainingRun(Config(), TASK, CampaignDirectory(root), control or Control(), provenance, keep=2)


def state() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(2)}


def saved(run: TrainingRun) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []


def test_a_step_is_reported_before_it_is_saved_and_saved_when_it_is_time_to(tmp_path: Path) -> None:
    control = Listening(tmp_path)
    run = open_(tmp_path, control)
    for done in range(1, 6):
        run.step_done(done, 5, 2, state, {"step": done} if done % 2 else None, loss=0.5)
    assert [record["step"] for record in disk.read_jsonl(run.metrics)] == [1, 3, 5]
    assert control.seen[1] == (2, 5, {"worked": 2, "samples": 1, "saved": True, "loss": 0.5}, [])
    assert control.seen[2][3] == ["step-000000002"]
    assert saved(run) == ["step-000000004", "step-000000005"], "the last step is always saved"


def test_the_state_is_taken_only_to_be_saved(tmp_path: Path) -> None:
    open_(tmp_path).step_done(1, 5, 2, lambda: pytest.fail("the GPU was waited for"))


def test_asked_to_leave_it_saves_first(tmp_path: Path) -> None:
    control = Control()
    control.request_stop()
    run = open_(tmp_path, control)
    with pytest.raises(Saved):
        run.step_done(1, 5, 2, state)
    assert saved(run) == ["step-000000001"]


def test_a_stop_that_arrives_while_it_saves_is_obeyed_after_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control()
    run, save = open_(tmp_path, control), runs.save_checkpoint
    monkeypatch.setattr(runs, "save_checkpoint", lambda *arguments: (save(*arguments), control.request_stop()))
    run.step_done(2, 5, 2, state)
    with pytest.raises(Saved):
        run.step_done(3, 5, 2, state)
    assert saved(run) == ["step-000000002", "step-000000003"]


def test_a_model_made_from_something_else_is_refused_by_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert not open_(tmp_path, seed=1).has_published(model)
    disk.write_json(disk.make_directory(model) / "facts.json", {"seed": 1})
    assert open_(tmp_path, seed=1).has_published(model)
    with pytest.raises(InputError, match="seed was 1 and is 2"):
        open_(tmp_path, seed=2).has_published(model)
    (model / "facts.json").unlink()
    with pytest.raises(InputError, match="seed was None and is 1"):
        open_(tmp_path, seed=1).has_published(model)


def test_what_a_killed_attempt_left_half_written_is_removed(tmp_path: Path) -> None:
    work = disk.make_directory(tmp_path / "work" / "finetune" / "ct" / "checkpoints")
    for folder in (work, work.parent):
        old = folder / ".step-000000004.tmp-another-host-18"
        old.mkdir()
        os.utime(old, (0, 0))
    open_(tmp_path)
    assert [path.name for path in work.parent.rglob("*")] == ["checkpoints"]
