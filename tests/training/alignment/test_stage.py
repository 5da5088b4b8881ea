"""The stage `align`: a run that is stopped or killed anywhere ends in the bits of one that is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.config import Config
from medsyn.stage import CampaignDirectory, Control, Saved, Task
from medsyn.training.alignment import stage
from medsyn.training.alignment.judging import Judging
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


PLACES = [
    *(("batch", 2), ("image", 3), ("reference", 1), ("judged image", 8)),
    *(("step", number) for number in (1, 2, 3, 4, 5, 7, 8)),
]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("how", [StopAt, KillAt])
@pytest.mark.parametrize(("unit", "step"), PLACES)
def test_interrupted_anywhere_it_ends_in_the_same_bits(
    unit: str, step: int, how: type[StopAt], data: Path, root: Path, undisturbed: Path
) -> None:
    config = config_of(data, rounds=2)
    for number in range(20):
        try:
            run(config, root, how(unit, step) if number == 0 else Control())
            break
        except (Saved, KeyboardInterrupt):
            continue
    assert metrics(root) == metrics(undisturbed)
    assert contents(root) == contents(undisturbed)
