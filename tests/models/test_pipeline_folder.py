from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTextModel, CLIPTokenizer

from medsyn import disk
from medsyn.models import model_folder, pipeline_folder, tiny

VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_random(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "base")


def published(base: Path, to: Path) -> Path:
    """The model as a fine-tuning leaves it, with the base's own UNet."""
    with disk.atomic_directory(to) as temporary:
        shutil.copytree(base / "unet", temporary / "unet")
        pipeline_folder.add_parts(base, temporary)
    return to


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_large_files_are_the_base_models_own_and_outlive_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a hub cache, where the files are symbolic links to others, readable by all."""
    monkeypatch.setattr(pipeline_folder, "_WORTH_A_LINK", (base / VAE).stat().st_size)
    blob = (base / VAE).rename(tmp_path / "blob")
    blob.chmod(0o644)
    (base / VAE).symlink_to(blob)
    model = published(base, tmp_path / "model")
    assert (model / VAE).samefile(blob)
    assert not (model / VAE).is_symlink()
    assert blob.stat().st_mode & 0o777 == 0o644  # the mode of a file of others is theirs
    assert not (model / TEXT).samefile(base / TEXT)  # smaller ones are copies
    assert (model / TEXT).stat().st_mode & 0o777 == 0o640
    blob.unlink()
    shutil.rmtree(base)
    assert model_folder.problems(str(model)) == []


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_what_cannot_be_linked_is_copied(
    number: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pipeline_folder, "_WORTH_A_LINK", 1)
    monkeypatch.setattr(os, "link", refuse)
    model = published(base, tmp_path / "model")
    assert (model / VAE).read_bytes() == (base / VAE).read_bytes()
    assert (model / VAE).stat().st_nlink == 1


def test_what_no_one_reads_is_left_out(base: Path, tmp_path: Path) -> None:
    for extra in ("safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json"):
        (base / extra).parent.mkdir()
        (base / extra).touch()
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change(base / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    for extra in ("vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/pytorch_model.bin"):
        (base / extra).touch()
    (base / "tokenizer" / "added_tokens.json").write_text("{}")
    model = published(base, tmp_path / "model")
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    wanted = {f"{part}/{name}" for part, names in pipeline_folder.PARTS.items() for name in names}
    further = {f"tokenizer/{name}.json" for name in ("added_tokens", "special_tokens_map", "tokenizer_config")}
    assert files == wanted | further | {"model_index.json"}
    index = json.loads((model / "model_index.json").read_text())
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


@pytest.mark.parametrize(
    ("named", "listed"),
    [("PNDMScheduler", "PNDMScheduler"), (None, "DDIMScheduler"), ("SchedulerOfTomorrow", "DDIMScheduler")],
)
def test_the_index_names_the_base_models_sampler(named: str | None, listed: str, base: Path, tmp_path: Path) -> None:
    change(base / "scheduler" / "scheduler_config.json", _class_name=named)
    model = published(base, tmp_path / "model")
    assert json.loads((model / "model_index.json").read_text())["scheduler"] == ["diffusers", listed]


@pytest.mark.parametrize("settings", [None, {}, {"model_max_length": None}, {"model_max_length": 10**30}])
def test_a_tokenizer_without_a_length_gets_the_text_encoders(
    settings: dict[str, Any] | None, base: Path, tmp_path: Path
) -> None:
    path = base / "tokenizer" / "tokenizer_config.json"
    path.unlink() if settings is None else path.write_text(json.dumps(settings))
    model = published(base, tmp_path / "model")
    assert CLIPTokenizer.from_pretrained(str(model / "tokenizer")).model_max_length == 77


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_a_half_text_encoder_is_loaded_as_float32_where_its_configuration_decides(
    key: str, base: Path, tmp_path: Path
) -> None:
    """With `auto`, the default of later versions of transformers."""
    CLIPTextModel.from_pretrained(str(base / "text_encoder")).half().save_pretrained(base / "text_encoder")
    config = json.loads((base / "text_encoder" / "config.json").read_text())
    assert config.pop("torch_dtype") == "float16"
    (base / "text_encoder" / "config.json").write_text(json.dumps(config | {key: "float16"}))
    model = published(base, tmp_path / "model")
    loaded = CLIPTextModel.from_pretrained(str(model / "text_encoder"), torch_dtype="auto")
    assert str(loaded.dtype) == "torch.float32"
    assert "dtype" not in json.loads((model / "text_encoder" / "config.json").read_text())
