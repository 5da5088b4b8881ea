"""A small campaign whose fine-tuning and scorers are done, once for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medsyn.config import Config, validate
from medsyn.models import tiny
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.finetune import stage as finetuning
from medsyn.training.scorers import stages
from tests.helpers.once import once
from tests.helpers.rated_pictures import picture
from tests.helpers.small_unet import small_unet

SCORER = {"image_size": 32, "patch_size": 16, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
SCORER |= {"members": 2}


def config_of(data: Path, **changes: Any) -> Config:
    """The campaign's configuration; `changes` are keys of its section `align`."""
    align = {
        "enabled": True,
        "prompts": 3,
        "candidates": 3,
        "max_train_steps": 2,
        "train_batch_size": 6,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 0,
        "spread_weight": 0.0,
        "judge_every": 2,
        "judge_images": 8,
        "judge_share": 0.4,
        "min_diversity": 0.0,
        "checkpointing_steps": 1,
    }
    tree: dict[str, Any] = {
        "data": {
            "table": str(data / "table.csv"),
            "ratings_file": str(data / "ratings.csv"),
            "resolution": 32,
            "modalities": ["CT"],
            "held_out_fraction": 0.4,
        },
        "model_paths": {"stable_diffusion": str(data / "weights")},
        "finetune": {
            "max_train_steps": 2,
            "train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "lr_warmup_steps": 0,
            "checkpointing_steps": 100,
        },
        "training": {"stage": 1, "max_epochs": 2, "batch_size": 8, "stage1": {"learning_rate": 3e-3}},
        "selector": {**SCORER, "artifact_detection": False, "require_auroc": None},
        "policy_model": SCORER,
        "generation": {"num_inference_steps": 2, "guidance_scale": 2.0, "batch_size": 4, "quality_threshold": 0.2},
        "align": align | changes,
        "device": {"use_cuda": False},
    }
    return validate(tree, "test")


def _write_tables(data: Path) -> None:
    images = ["path,Text,modality,patient_id"]
    ratings = ["image_path,rating,modality,expert_level,prompt"]
    for number in range(24):
        rating = 1 + number % 3
        Image.fromarray(picture(number, 3)).save(data / f"real-{number}.png")
        images.append(f"real-{number}.png,CT: finding {number % 4},CT,p{number}")
        Image.fromarray(picture(100 + number, rating)).save(data / f"rated-{number}.png")
        ratings.append(f"rated-{number}.png,{rating},CT,3,CT: finding {number % 4}")
    (data / "table.csv").write_text("\n".join(images) + "\n")
    (data / "ratings.csv").write_text("\n".join(ratings) + "\n")


def _write_weights(data: Path) -> None:
    directory = tiny.build_random(data / "weights")
    small_unet().save_pretrained(directory / "unet")


def _prepare(base: Path) -> None:
    data = base / "data"
    data.mkdir(parents=True)
    _write_tables(data)
    _write_weights(data)
    config, directory = config_of(data), CampaignDirectory(base / "root")
    finetuning.run(config, Task("finetune", 0, "ct", "CT"), directory, Control())
    stages.run_stage1(config, Task("rlhf-stage1", 0, "all"), directory, Control())


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "alignment", _prepare)


@pytest.fixture(scope="session")
def data(base: Path) -> Path:
    return base / "data"


@pytest.fixture
def root(base: Path, tmp_path: Path) -> Path:
    """A campaign of its own, up to here."""
    shutil.copytree(base / "root", tmp_path / "root", copy_function=shutil.copyfile)
    return tmp_path / "root"


Aligned = Callable[..., Path]
