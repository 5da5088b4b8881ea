"""The metrics in TensorBoard's format: each step once, whatever happened between."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from medsyn import disk
from medsyn.config import Config, TrainingSection
from medsyn.errors import InputError
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.run import EVENT_FILES, TrainingRun
from tests.helpers.event_files import scalars
from tests.helpers.paths import ROOT

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
TASK = Task("finetune", 0, "ct", "CT")
REPORTED = Config(training=TrainingSection(report_to="tensorboard"))


def open_(root: Path, config: Config = REPORTED) -> TrainingRun:
    return TrainingRun(config, TASK, CampaignDirectory(root), Control(), {}, keep=2)


def make(run: TrainingRun, steps: range) -> None:
    for step in steps:
        line = {"step": step, "loss": step / 8, "held_out_loss": [0.5, 0.25, 0.75], "reward": None}
        run.step_done(step, 9, None, dict, line)


def steps_in_files(folder: Path) -> Counter[int]:
    """How often each step is written, to whoever reads the files without knowing what to forget."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    events = [event for path in sorted(folder.iterdir()) for event in loader.EventFileLoader(str(path)).Load()]
    return Counter(event.step for event in events if any(value.tag == "loss" for value in event.summary.value))


def test_every_line_is_there_at_once_with_its_numbers(tmp_path: Path) -> None:
    run = open_(tmp_path)
    with run:
        run.resume_metrics("step", 0)
        make(run, range(1, 3))
        assert scalars(run.directory / EVENT_FILES) == {
            "loss": [(1, 0.125), (2, 0.25)],
            "held_out_loss": [(1, 0.5), (2, 0.5)],
            "held_out_loss_low": [(1, 0.25), (2, 0.25)],
            "held_out_loss_high": [(1, 0.75), (2, 0.75)],
        }


@pytest.mark.parametrize("torn", [False, True])
def test_a_run_that_was_killed_repeats_no_step_and_lacks_none(torn: bool, tmp_path: Path) -> None:
    killed = open_(tmp_path)
    killed.resume_metrics("step", 0)
    make(killed, range(1, 6))
    folder = killed.directory / EVENT_FILES
    if torn:  # in the middle of an event, after its line was on disk
        file = next(folder.iterdir())
        file.write_bytes(file.read_bytes()[:-9])
    run = open_(tmp_path)
    with run:
        assert [line["step"] for line in run.resume_metrics("step", 3)] == [1, 2, 3]
        make(run, range(4, 7))
    assert scalars(folder)["loss"] == [(step, step / 8) for step in range(1, 7)]
    assert steps_in_files(folder) == dict.fromkeys(range(1, 7), 1)
    assert [line["step"] for line in disk.read_jsonl(run.metrics)] == list(range(1, 7))


def test_a_viewer_forgets_what_it_saw_of_the_attempt_before(tmp_path: Path) -> None:
    """It looks at the same folder all the time, and keeps what it has read of a file that is gone."""
    killed = open_(tmp_path)
    killed.resume_metrics("step", 0)
    make(killed, range(1, 6))
    viewer = accumulator.EventAccumulator(str(killed.directory / EVENT_FILES)).Reload()
    assert len(viewer.Scalars("loss")) == 5
    old = {path: path.read_bytes() for path in (killed.directory / EVENT_FILES).iterdir()}
    run = open_(tmp_path)
    with run:
        run.resume_metrics("step", 3)
        make(run, range(4, 5))
    for path, content in old.items():  # as a killed attempt leaves it that was about to delete it
        path.write_bytes(content)
    assert [one.step for one in viewer.Reload().Scalars("loss")] == [1, 2, 3, 4]


def test_asked_for_later_it_has_the_steps_before_and_no_longer_asked_for_it_is_gone(tmp_path: Path) -> None:
    first = open_(tmp_path, Config())
    first.resume_metrics("step", 0)
    make(first, range(1, 3))
    assert not (first.directory / EVENT_FILES).exists()
    with (second := open_(tmp_path)):
        second.resume_metrics("step", 2)
        make(second, range(3, 4))
    assert [step for step, _ in scalars(first.directory / EVENT_FILES)["loss"]] == [1, 2, 3]
    open_(tmp_path, Config()).resume_metrics("step", 2)
    assert not (first.directory / EVENT_FILES).exists()


@pytest.mark.parametrize(
    ("report_to", "module", "told"),
    [
        ("tensorboard", "event_files", r"TensorBoard cannot be imported .*medsyn-hpc\[tensorb"),
        ("wandb", "wandb_run", "Weights & Biases cannot be imported .*; install wandb, or use null"),
    ],
)
def test_a_missing_package_is_one_clear_line(
    report_to: Literal["tensorboard", "wandb"], module: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"medsyn.training.{module}", None)
    with pytest.raises(InputError, match=rf"training\.report_to: {told}"):
        open_(tmp_path, Config(training=TrainingSection(report_to=report_to))).resume_metrics("step", 0)


WANDB = """
import sys
from pathlib import Path
from medsyn.training.wandb_run import WandbRun
from wandb.proto.wandb_internal_pb2 import Record

folder = Path(sys.argv[1])
lines = [{"step": step, "loss": step / 8, "held_out_loss": [0.5, 0.25, 0.75], "reward": None} for step in range(1, 6)]
first = WandbRun(folder, "step", lines[:4], "finetune ct", "tiny")
first.close()
second = WandbRun(folder, "step", lines[:2], "finetune ct", "tiny")  # goes on from step 2
for line in lines[2:]:
    second.add(line)
second.close()
(file,) = folder.glob("offline-run-*/run-*.wandb")
content, place, steps = file.read_bytes(), 7, []
while place < len(content):  # a log as LevelDB has it: checksum, length and kind before each piece; one block here
    length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
    record, place = Record(), place + 7 + length
    assert kind == 1, "a whole record"
    record.ParseFromString(content[place - length : place])
    if record.HasField("history"):
        found = {item.key or "/".join(item.nested_key): float(item.value_json) for item in record.history.item}
        steps.append((found["_step"], found["loss"], found["held_out_loss_low"]))
assert steps == [(step, step / 8, 0.25) for step in range(1, 6)], steps
"""


@pytest.mark.slow
def test_an_offline_run_has_every_step_once(tmp_path: Path) -> None:
    """With wandb in a folder of its own: medsyn's environment has none."""
    fetch = ["uv", "pip", "install", "--quiet", "--target", str(tmp_path / "extra"), "wandb==0.31.0"]
    if subprocess.run(fetch, cwd=ROOT, check=False, capture_output=True, timeout=120).returncode:
        pytest.skip("wandb cannot be fetched here")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'extra'}:{ROOT}"}
    command = [sys.executable, "-c", WANDB, str(tmp_path / "run" / "wandb")]
    (tmp_path / "run").mkdir()
    subprocess.run(command, env=environment, check=True, timeout=120)
