"""One model for all modalities (`finetune.together`): the same promises as for a model of one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.stage import CampaignDirectory, Control, Saved, Task
from medsyn.training.finetune import dataset, stage
from tests.training import test_finetune
from tests.training.test_finetune import KILLS, StopAt, killed_run

weights, table = test_finetune.weights, test_finetune.table  # its fixtures
ALL = Task("finetune", 0, "all")
WORK = "work/finetune/all"


def together(weights: Path, table: Path, **section: object) -> Config:
    data = {"modalities": ["CT", "MRI"]}
    return test_finetune.training(weights, table, data=data, together=True, **section)


@pytest.fixture(autouse=True)
def runs_are_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_finetune, "TASK", ALL)


@pytest.fixture(scope="module")
def undisturbed(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    stage.run(together(weights, table), ALL, CampaignDirectory(root), Control())
    return root


def made(root: Path) -> tuple[bytes, list[dict[str, object]]]:
    """The published weights, and the metrics."""
    unet = root / WORK / "model/unet/diffusion_pytorch_model.safetensors"
    lines = disk.read_jsonl(root / WORK / "metrics.jsonl")
    return unet.read_bytes(), [{k: v for k, v in one.items() if k not in test_finetune.MEASURED} for one in lines]


def test_it_learns_from_the_training_images_of_every_modality(weights: Path, table: Path, undisturbed: Path) -> None:
    config = together(weights, table)
    rows, held_out = dataset.training_rows(config, None)
    each = [dataset.training_rows(config, modality) for modality in ("CT", "MRI")]
    assert {row.file for row in rows} == {row.file for kept, _ in each for row in kept}
    assert {row.file for row in held_out} == {row.file for _, held in each for row in held}
    assert disk.read_json(undisturbed / WORK / "summary.json")["samples"] == len(rows)
    assert not (undisturbed / "work/finetune/ct").exists()


def test_stopped_and_killed_it_ends_in_the_same_bits(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = together(weights, table)
    place, name, make = KILLS["in the second save"]
    with monkeypatch.context() as patched:
        killed_run(config, tmp_path, lambda: patched.setattr(place, name, make(getattr(place, name))))
    with pytest.raises(Saved):
        test_finetune.run(config, tmp_path, StopAt(3))
    test_finetune.run(config, tmp_path)
    assert made(tmp_path) == made(undisturbed)


def test_validation_sees_as_many_images_of_each_modality_as_possible(
    weights: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"modalities": ["CT", "MRI"], "held_out_fraction": 0.5}
    config = test_finetune.training(weights, table, data=data, together=True, validate_every=1)
    _, held_out = dataset.training_rows(config, None)
    chosen = stage._validated_rows(config, ALL, held_out)
    assert sorted(row.row for row in chosen) == sorted(row.row for row in held_out)
    assert [row.modality for row in chosen[:2]] == ["CT", "MRI"], "strips show them in turn"
    monkeypatch.setattr(stage, "MOST_IMAGES", 2)
    assert Counter(row.modality for row in stage._validated_rows(config, ALL, held_out)) == {"CT": 1, "MRI": 1}


def test_a_modality_without_images_is_told(weights: Path, table: Path) -> None:
    config = together(weights, table)
    listed = config.model_copy(update={"data": config.data.model_copy(update={"modalities": ["CT", "OCT"]})})
    with pytest.raises(InputError, match="has no images of OCT"):
        dataset.training_rows(listed, None)
