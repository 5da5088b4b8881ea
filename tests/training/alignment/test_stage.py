"""The stage `align`: a run that is stopped or killed anywhere ends in the bits of one that is not."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images.read import read_image
from medsyn.errors import InputError
from medsyn.models.weights import UNET_WEIGHTS, unet_sha256
from medsyn.stage import CampaignDirectory, Control, Saved, Task
from medsyn.training.alignment import publish, sources, stage
from medsyn.training.alignment.judging import Judging
from medsyn.training.alignment.methods import LOSSES
from medsyn.training.finetune.lora import ADAPTER_WEIGHTS
from tests.training.alignment.conftest import config_of

TASK = Task("align", 0, "ct", "CT")
MEASURED = ("samples_per_second",)  # no two runs have the same


def run(config: Config, root: Path, control: Control | None = None) -> None:
    stage.run(config, TASK, CampaignDirectory(root), control or Control())


def work(root: Path) -> Path:
    return root / "work/align/ct"


def summary(root: Path) -> dict[str, Any]:
    return disk.read_json(work(root) / "summary.json")


def metrics(root: Path) -> list[dict[str, Any]]:
    lines = disk.read_jsonl(work(root) / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the task but the metrics, which are compared apart."""
    files = (path for path in sorted(work(root).rglob("*")) if path.is_file() and path.name != "metrics.jsonl")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that lets everything pass: a random model hardly ever gets better, and the bits are what counts here."""
    strict = Judging.verdict

    def verdict(self: Judging, end: int) -> dict[str, Any]:
        return strict(self, end) | {"kept": True}

    monkeypatch.setattr(Judging, "verdict", verdict)


class StopAt(Control):
    """Asks the task to leave at a unit of its work, as a signal that arrives just then would."""

    def __init__(self, unit: str, step: int) -> None:
        super().__init__()
        self._unit, self._step = unit, step

    def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
        if unit == self._unit and step >= self._step:
            self.reached()

    def reached(self) -> None:
        self.request_stop()


class KillAt(StopAt):
    """Dies at once, saving nothing, as kill -9 would have it."""

    def reached(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, never interrupted, with a judge that lets everything pass."""
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    shutil.copytree(base / "root", root)
    with pytest.MonkeyPatch.context() as patch:
        strict = Judging.verdict
        patch.setattr(Judging, "verdict", lambda self, end: strict(self, end) | {"kept": True})
        run(config_of(data, rounds=2), root)
    return root


PLACES = [("batch", 2), ("reference", 1), ("judged image", 8), ("step", 1), ("step", 2), ("step", 3)]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(
    ("unit", "step", "how"),
    [(*place, StopAt if number % 2 else KillAt) for number, place in enumerate(PLACES)],
)
def test_interrupted_anywhere_it_ends_in_the_same_bits(
    unit: str, step: int, how: type[StopAt], data: Path, root: Path, undisturbed: Path
) -> None:
    config = config_of(data, rounds=2)
    with pytest.raises((Saved, KeyboardInterrupt)):
        run(config, root, how(unit, step))
    run(config, root)
    assert metrics(root) == metrics(undisturbed)
    assert contents(root) == contents(undisturbed)


def kill_self(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(number: int, function: Any) -> Any:
    """`function`, but its call `number` (from 1) is SIGKILL."""
    calls = itertools.count(1)
    return lambda *given, **named: (kill_self if next(calls) == number else function)(*given, **named)


KILLS: dict[str, tuple[Any, str, int]] = {
    "while candidates are kept": (publish, "_png", 3),
    "when the first round is over": (stage, "discard_best", 1),
    "before the model is published": (stage, "publish", 1),
}


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("kill", KILLS)
def test_so_it_does_after_a_kill_minus_nine(
    kill: str, data: Path, root: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, (place, name, number) = config_of(data, rounds=2), KILLS[kill]
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(place, name, on_call(number, getattr(place, name)))
            run(config, root)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run(config, root)
    assert metrics(root) == metrics(undisturbed)
    assert contents(root) == contents(undisturbed)


def test_two_rounds_leave_a_model_that_learned_and_their_candidates(data: Path, undisturbed: Path) -> None:
    directory, config = CampaignDirectory(undisturbed), config_of(data, rounds=2)
    before, after = (load_file(folder / "unet" / UNET_WEIGHTS) for folder in (
        directory.finetuned_unet("CT"), directory.aligned_unet("CT")))  # fmt: skip
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    pipeline = StableDiffusionPipeline.from_pretrained(directory.aligned_unet("CT"), safety_checker=None)
    assert pipeline.unet.config.cross_attention_dim > 0
    for number in (1, 2):
        folder = work(undisturbed) / f"candidates/round-{number}"
        rows = list(csv.DictReader((folder / "candidates.csv").open()))
        assert len(rows) == config.align.prompts * config.align.candidates
        assert {row["part"] for row in rows} == {"best", "worst", "left out"}
        assert {path.name for path in folder.glob("*.png")} == {row["file"] for row in rows}
        assert all(read_image(folder / row["file"]).synthetic for row in rows)
    first, second = (
        {row["seed"] for row in csv.DictReader((work(undisturbed) / f"candidates/round-{n}/candidates.csv").open())}
        for n in (1, 2)
    )
    assert not first & second
    assert not [*work(undisturbed).glob("best-*"), *work(undisturbed).glob("round-*/unet")]
    assert not (undisturbed / "cache/align-ct").exists()


def test_its_records_say_what_it_did(data: Path, undisturbed: Path) -> None:
    lines, told = metrics(undisturbed), summary(undisturbed)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["round"] for line in lines] == [1, 1, 2, 2]
    assert all({"synthetic_loss", "real_loss", "winner_loss", "kl"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "reward" in line] == [2, 4]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-10)  # before the first step it is the reference
    assert lines[0]["synthetic_loss"] == pytest.approx(np.log(2) * 4 / 2000)
    assert [one["round"] for one in told["rounds"]] == [1, 2]
    assert told["judge"]["real_images"] > 0


@pytest.mark.parametrize("method", [name for name in LOSSES if name != "dpo"])
def test_every_method_goes_through_the_same_loop(method: str, data: Path, root: Path) -> None:
    run(config_of(data, method=method), root)
    lines = metrics(root)
    assert len(lines) == 2
    assert all(np.isfinite(list(line.values())).all() for line in lines)


def test_adapters_are_trained_merged_and_left_beside(data: Path, root: Path, undisturbed: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        strict = Judging.verdict
        patch.setattr(Judging, "verdict", lambda self, end: strict(self, end) | {"kept": True})
        run(config_of(data, lora={"rank": 2}), root)
    model = CampaignDirectory(root).aligned_unet("CT")
    assert (model / ADAPTER_WEIGHTS).is_file()
    before = load_file(CampaignDirectory(root).finetuned_unet("CT") / "unet" / UNET_WEIGHTS)
    after = load_file(model / "unet" / UNET_WEIGHTS)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all("attn" in name for name in changed)
    assert metrics(root)[0]["kl"] == pytest.approx(0, abs=1e-10)


def test_what_is_not_better_is_not_published(data: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Judging.verdict
    reason = "the judge finds no difference in distance"
    monkeypatch.setattr(Judging, "verdict", lambda self, end: strict(self, end) | {"kept": False, "reason": reason})
    control = Control()
    run(config_of(data, rounds=3), root, control)
    assert control.about == {"round": 1, "rounds": 3}  # what `status` shows
    directory, told = CampaignDirectory(root), summary(root)
    assert unet_sha256(directory.aligned_unet("CT")) == unet_sha256(directory.finetuned_unet("CT"))
    assert (told["kept"], told["reason"], len(told["rounds"])) == (False, reason, 1)


def test_a_selector_that_may_not_choose_images_teaches_nothing(
    data: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "lacking", lambda *_: "its AUROC is 0.52")
    run(config_of(data), root)
    told = summary(root)
    assert told["kept"] is False
    assert told["reason"] == "nothing was learned from this Selector: its AUROC is 0.52"
    assert not (work(root) / "candidates").exists()


def test_a_finished_alignment_loads_nothing(data: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "load_unet", lambda *_: pytest.fail("the UNet was loaded"))
    before = contents(undisturbed)
    run(config_of(data, rounds=2), undisturbed)
    assert contents(undisturbed) == before


def test_going_on_with_other_settings_is_refused_by_name(data: Path, root: Path, undisturbed: Path) -> None:
    with pytest.raises(Saved):
        run(config_of(data), root, StopAt("step", 1))
    with pytest.raises(InputError, match=r"align\.beta was 2000\.0 and is 5\.0"):
        run(config_of(data, beta=5.0), root)
    with pytest.raises(InputError, match=r"align\.rounds was 2 and is 1"):
        run(config_of(data), undisturbed)


@pytest.mark.parametrize(
    ("absent", "task"), [("finetune/ct/model", "finetune ct"), ("rlhf-stage1/all/policy", "rlhf-stage1 all")]
)
def test_what_an_earlier_stage_has_not_made_is_told_by_its_name(absent: str, task: str, data: Path, root: Path) -> None:
    shutil.rmtree(root / "work" / absent)
    with pytest.raises(InputError, match=f"is missing; the task '{task}' makes it"):
        run(config_of(data), root)
