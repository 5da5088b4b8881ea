"""A model that is one file: told in the plan, converted once when the campaign is prepared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from medsyn.campaign.plan import inputs, show
from medsyn.campaign.state import campaign_file
from medsyn.config import Config
from medsyn.errors import InputProblems
from medsyn.models import model_folder, single_file
from medsyn.models.weights import embedded_directory
from medsyn.stage import CampaignDirectory
from tests.helpers import single_file as layout
from tests.helpers.trial import Trial


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(inputs, "_check_images", lambda data, tables, progress: [])
    return Trial(tmp_path)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded model as one file, and its configurations beside it."""
    folder = tmp_path_factory.mktemp("released")
    layout.write(embedded_directory(), folder / "v1.safetensors")
    shutil.copytree(embedded_directory(), folder / "parts", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def config(trial: Trial, file: Path, components: Path | None, **overrides: object) -> Config:
    paths = {"stable_diffusion": str(file), "components": str(components) if components else None}
    return trial.config(**{f"model_paths__{key}": value for key, value in paths.items()}, **overrides)


def models(trial: Trial) -> list[Path]:
    return sorted((trial.root / "inputs" / "models").iterdir())


def test_the_plan_writes_nothing_and_knows_the_model(trial: Trial, released: Path) -> None:
    checked = inputs.check(config(trial, released / "v1.safetensors", released / "parts"))
    assert checked.errors == [] and not trial.root.exists()
    assert not checked.estimate.assumed, "the sizes are the model's own"
    (line,) = show.converting(checked)
    assert line.startswith(f"model: {released / 'v1.safetensors'} is converted once, to {trial.root}/inputs/models/v1-")
    assert line.endswith(" (0.01 GiB)")


def test_it_is_converted_once_and_the_tasks_read_a_directory(trial: Trial, released: Path) -> None:
    given = config(trial, released / "v1.safetensors", released / "parts")
    campaign = trial.prepare_config(given)
    (made,) = models(trial)
    assert campaign.config.model_paths.stable_diffusion == str(made)
    assert model_folder.problems(str(made)) == []
    before = made.stat()
    again = trial.prepare_config(given)
    assert again.fingerprints == campaign.fingerprints and made.stat().st_ino == before.st_ino
    assert list(show.converting(inputs.check(given))) == []
    # the directory stands for itself: the file and what was beside it may go
    assert inputs.check(inputs.of_directory(trial.root)).errors == []


def test_what_was_converted_and_lost_is_converted_again_and_is_the_same(trial: Trial, released: Path) -> None:
    given = config(trial, released / "v1.safetensors", released / "parts")
    before = trial.prepare_config(given).fingerprints
    trial.work("finetune", "ct")
    shutil.rmtree(models(trial)[0])
    assert trial.prepare_config(given).fingerprints == before


def test_another_file_is_another_model(trial: Trial, released: Path, tmp_path: Path) -> None:
    given = config(trial, released / "v1.safetensors", released / "parts")
    first = trial.prepare_config(given)
    tensors = load_file(released / "v1.safetensors")
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, tmp_path / "v1.safetensors")
    other = config(trial, tmp_path / "v1.safetensors", released / "parts")
    second = trial.prepare_config(other)
    assert len(models(trial)) == 1, "the first one is removed"
    assert first.fingerprints["finetune"] != second.fingerprints["finetune"]
    trial.work("finetune", "ct")
    with pytest.raises(InputProblems, match=r"model_paths\.stable_diffusion: has changed, but this campaign has"):
        trial.prepare_config(given)
    assert len(models(trial)) == 1


@pytest.mark.parametrize("kind", ["no components", "another kind", "a rank over the width"])
def test_what_cannot_be_used_is_an_error_of_the_plan(kind: str, trial: Trial, released: Path, tmp_path: Path) -> None:
    file, components, overrides = released / "v1.safetensors", released / "parts", {}
    if kind == "no components":
        components, told = None, "has weights only: give a diffusers directory"
    elif kind == "another kind":
        file, told = tmp_path / "lora.safetensors", "is an adapter (LoRA or the like), not a model"
        save_file({"lora_unet.lora_up.weight": load_file(released / "v1.safetensors").popitem()[1]}, file)
    else:
        overrides, told = {"finetune__lora": {"rank": 500}}, "500 is over the width of"
    errors = inputs.check(config(trial, file, components, **overrides)).errors
    found = [str(problem) for problem in errors if problem.key != "campaign.dir"]  # of a disk too small for v1.5
    assert len(found) == 1 and told in found[0]


def test_components_beside_a_directory_change_nothing(trial: Trial, released: Path) -> None:
    given = config(trial, embedded_directory(), released / "parts")
    assert inputs.check(given).errors == []
    record = campaign_file.read_record(CampaignDirectory(trial.root))
    assert record is None and not single_file.is_one(given.model_paths.stable_diffusion)
