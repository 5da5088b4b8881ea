from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medsyn import disk, host_memory
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.stage import CampaignDirectory, Control, Saved, Task
from medsyn.training import checkpoint
from medsyn.training import run as runs
from medsyn.training.background_writer import BackgroundWriter, Job
from medsyn.training.checkpoint import load_newest
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
    with run:
        for done in range(1, 6):
            run.step_done(done, 5, 2, state, {"step": done} if done % 2 else None, loss=0.5)
            run._writer.wait()
    assert [record["step"] for record in disk.read_jsonl(run.metrics)] == [1, 3, 5]
    assert control.seen[1] == (2, 5, {"worked": 2, "samples": 1, "saved": True, "loss": 0.5}, [])
    assert control.seen[2][3] == ["step-000000002"]
    assert saved(run) == ["step-000000002", "step-000000004"]


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
    run._writer.wait()
    with pytest.raises(Saved):
        run.step_done(3, 5, 2, state)
    assert saved(run) == ["step-000000002", "step-000000003"]


class Slow:
    """In the place of `save_checkpoint`: writes when it is allowed to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, may_write: bool = False) -> None:
        self.save, self.begun, self.may_write = runs.save_checkpoint, threading.Event(), threading.Event()
        self.may_write.set() if may_write else None
        monkeypatch.setattr(runs, "save_checkpoint", self)

    def __call__(self, *arguments: Any) -> None:
        self.begun.set()
        assert self.may_write.wait(30)
        self.save(*arguments)


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, weight = Slow(monkeypatch), torch.ones(2)
    with open_(tmp_path) as run:
        run.step_done(2, 5, 2, lambda: {"weight": weight})
        assert slow.begun.wait(30)
        weight += 1
        run.step_done(3, 5, 2, state)
        assert saved(run) == []
        slow.may_write.set()
    found = load_newest(run.checkpoints, {})
    assert found is not None
    assert (found[0], found[1]["weight"].tolist()) == (2, [1, 1])


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state.safetensors")


def test_a_full_disk_is_raised_by_the_next_step_or_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_(tmp_path)
    run.step_done(2, 9, 2, state)
    run._writer.wait()
    monkeypatch.setattr(checkpoint, "write_tensors", full)
    run.step_done(4, 9, 2, state)
    while run._writer.busy:
        time.sleep(0.001)
    with pytest.raises(OSError, match="No space left"):
        run.step_done(5, 9, 2, state)
    with pytest.raises(OSError, match="No space left"), run:
        run.step_done(6, 9, 2, state)
    with pytest.raises(ZeroDivisionError), run:
        run.step_done(6, 9, 2, state)
        raise ZeroDivisionError
    assert saved(run) == ["step-000000002"]


def test_what_memory_cannot_hold_twice_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: (1 << 30) + 7)
    monkeypatch.setattr(torch.Tensor, "to", lambda *_, **__: pytest.fail("copied"), raising=True)
    run = open_(tmp_path)
    monkeypatch.setattr(runs, "save_checkpoint", lambda directory, step, tensors, *_: seen.append((step, tensors)))
    seen: list[Any] = []
    for done in (1, 2):
        run.step_done(done, 5, 1, state)
    assert [step for step, _ in seen] == [1, 2] and not run._writer.busy
    assert caplog.text.count("training waits while checkpoints are written") == 1


@pytest.mark.parametrize(
    ("writing", "due_after"),
    [(0.0, 600), (46.0, 554), (400.0, 400), (2000.0, 2000)],
)
def test_the_interval_follows_from_the_minutes_and_the_time_that_writing_takes(
    writing: float, due_after: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e6
    monkeypatch.setattr(runs.time, "monotonic", lambda: now)
    run = TrainingRun(Config(), TASK, CampaignDirectory(tmp_path), Control(), {}, keep=2, max_lost_minutes=10)
    run._writer.last_seconds = writing
    now += due_after - 1
    assert not run._is_due(7, None)
    now += 1
    assert run._is_due(7, None)
    run._checkpoint(7, {})
    assert not run._is_due(8, None)
    assert run._is_due(8, 4) and not run._is_due(9, 4), "a number of steps wins"


@pytest.mark.parametrize("begun", [False, True], ids=["nothing is being written", "a checkpoint is being written"])
def test_a_save_that_does_not_fit_the_time_left_is_not_begun(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    control = Control(grace_seconds=5.0)
    run, slow = open_(tmp_path, control), Slow(monkeypatch)
    if begun:
        run.step_done(2, 9, 2, state)
        assert slow.begun.wait(30)
    slow.may_write.set()
    monkeypatch.setattr(run._writer, "seconds", lambda size: 46.0)
    control.request_stop()
    with pytest.raises(Saved):
        run.step_done(3, 9, 2, state)
    assert saved(run) == (["step-000000002"] if begun else [])
    what = "the checkpoint of step 2 stays" if begun else "there is no checkpoint yet"
    assert f"to save step 3 would take 46 s, and 5 s are left: {what}" in caplog.text


def test_a_task_that_is_killed_soon_does_not_wait_for_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control(grace_seconds=0.05)
    run, slow = open_(tmp_path, control), Slow(monkeypatch)
    run.step_done(2, 9, 2, state)
    assert slow.begun.wait(30)
    monkeypatch.setattr(run._writer, "seconds", lambda size: 46.0)
    control.request_stop()
    with pytest.raises(Saved):
        run.step_done(3, 9, 2, state)
    assert saved(run) == []
    slow.may_write.set()


def test_what_is_asked_of_a_writer_counts_what_it_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BackgroundWriter()
    assert writer.seconds(300_000_000) == pytest.approx(1)
    may_end = threading.Event()
    writer.begin([Job({"a": torch.zeros(75_000)}, lambda _: may_end.wait(30) and None)])
    assert writer.seconds(300_000_000) == pytest.approx(2, abs=0.9)
    may_end.set()
    assert writer.wait()
    assert writer.seconds(300_000) == pytest.approx(writer.last_seconds)


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
