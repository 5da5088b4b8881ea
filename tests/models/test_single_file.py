"""One file with all weights: read by the names of the first release, and by no one's leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsyn import disk
from medsyn.campaign.estimate.architecture import SD15_TEXT, SD15_UNET, SD15_VAE
from medsyn.models import model_folder, single_file, tiny
from medsyn.models.single_file import PREFIXES, original_names
from medsyn.models.tensors import expected
from medsyn.models.weights import PARTS, weights_fingerprint
from tests.helpers import single_file as layout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the blocks of Stable Diffusion v1.5: four levels of two layers, narrow ones."""
    directory = tiny.build_random(tmp_path_factory.mktemp("v1"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 8, 16, 16), cross_attention_dim=64, attention_head_dim=4,
            norm_num_groups=4,
        ).save_pretrained(directory / "unet")  # fmt: skip
        AutoencoderKL(
            block_out_channels=(8, 8, 16, 16), layers_per_block=2, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).save_pretrained(directory / "vae")  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_random(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["v1", "tiny"])
def base(request: pytest.FixtureRequest, model: Path, tiny_model: Path) -> Path:
    return model if request.param == "v1" else tiny_model


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout.write(model, tmp_path_factory.mktemp("file") / "v1 5:pruned.safetensors")


def network(base: Path, part: str) -> dict[str, Tensor]:
    return load_file(base / part / PARTS[part][1])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_names_are_those_that_diffusers_reads(base: Path) -> None:
    """Its own converters make of such a file what it was made from."""
    tensors = layout.tensors_of(base)
    for part, convert in (
        ("unet", single_file_utils.convert_ldm_unet_checkpoint),
        ("vae", single_file_utils.convert_ldm_vae_checkpoint),
    ):
        config = json.loads((base / part / "config.json").read_text())
        assert same(convert(dict(tensors), config), network(base, part)), part


def test_the_names_of_stable_diffusion_itself() -> None:
    """A few of the 1,130 that are known by heart, and how many there are."""
    names: set[str] = set()
    for part, settings in (("unet", SD15_UNET), ("vae", SD15_VAE), ("text_encoder", SD15_TEXT)):
        shapes = expected(part, settings) or {}
        names |= set(original_names(part, settings, list(shapes)).values())
    assert len(names) == 686 + 248 + 196
    assert names >= {
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.11.0.emb_layers.1.bias",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight",
        "first_stage_model.decoder.norm_out.bias",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight",
    }


def test_a_file_becomes_the_model_that_it_was(base: Path, tmp_path: Path) -> None:
    file = layout.write(base, tmp_path / "model.safetensors")
    components = shutil.copytree(base, tmp_path / "components", ignore=shutil.ignore_patterns("*.safetensors"))
    assert single_file.problems(file, str(components)) == []
    told: list[tuple[int, int]] = []
    made = tmp_path / "made"
    single_file.convert(file, components, made, lambda done, total: told.append((done, total)))
    for part in PREFIXES:
        assert same(network(made, part), network(base, part)), part
    assert model_folder.problems(str(made)) == []
    assert told[-1] == (len(told), len(told))
    assert (made / "unet" / PARTS["unet"][1]).stat().st_size > 8


def test_half_precision_stays_what_it_is(model: Path, tmp_path: Path) -> None:
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in
               layout.tensors_of(model).items()}  # fmt: skip
    save_file(tensors, tmp_path / "half.safetensors")
    single_file.convert(tmp_path / "half.safetensors", model, tmp_path / "made")
    assert network(tmp_path / "made", "unet")["conv_in.weight"].dtype == torch.float16
    assert model_folder.problems(str(tmp_path / "made")) == []


def test_the_folders_name_follows_from_what_is_in_the_file_and_beside_it(
    model: Path, tiny_model: Path, file: Path, tmp_path: Path
) -> None:
    name = single_file.folder_name(file, str(model))
    assert name.startswith("v1-5-pruned-") and len(name) == len("v1-5-pruned-") + 12
    assert single_file.folder_name(Path(shutil.copy(file, tmp_path)), str(model)) == name
    assert single_file.folder_name(file, str(tiny_model)) != name
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, tmp_path / file.name)
    assert single_file.folder_name(tmp_path / file.name, str(model)) != name


@pytest.mark.parametrize("after", [1, 400])
def test_killed_on_the_way_it_is_not_there_and_then_it_is_whole(
    after: int, model: Path, file: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"

    def progress(done: int, _: int) -> None:
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        single_file.convert(file, model, made, progress)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not made.exists()
    for directory in (made, tmp_path / "undisturbed"):
        single_file.convert(file, model, directory)
    assert weights_fingerprint(str(made)) == weights_fingerprint(str(tmp_path / "undisturbed"))


def only(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if name.startswith(prefix)}


def beside(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, name: torch.zeros(2)}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def wider(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An inpainting model's first convolution sees nine channels."""
    return {**tensors, "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}


OTHERS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "SDXL": (
        beside("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"),
        "is a Stable Diffusion XL checkpoint, and v1 is read",
    ),
    "SD2": (
        renamed("cond_stage_model.transformer.text_model", "cond_stage_model.model.transformer"),
        "is a Stable Diffusion v2 checkpoint (its text encoder is OpenCLIP's), and v1 is read: convert it with",
    ),
    "LoRA": (
        lambda _: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(2)},
        "is an adapter (LoRA or the like), not a model: merge it into one first",
    ),
    "SD3": (
        lambda _: {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(2)},
        "is a checkpoint of another architecture (Stable Diffusion 3, Flux or the like), and v1 is read",
    ),
    "a ControlNet": (lambda _: {"control_model.time_embed.0.weight": torch.zeros(2)}, "is a ControlNet, not a model"),
    "a part": (
        lambda _: {"down_blocks.0.resnets.0.norm1.weight": torch.zeros(2)},
        "is one part of a diffusers model: give the directory that the part is in",
    ),
    "anything": (
        lambda _: {"a": torch.zeros(2), "b": torch.zeros(2)},
        "is not a Stable Diffusion v1 checkpoint: its tensors are a, b",
    ),
    "only a UNet": (
        only("model.diffusion_model."),
        "has no vae (first_stage_model....) and no text_encoder (cond_stage_model.transformer....): give a whole model",
    ),
    "inpainting": (
        wider,
        "model.diffusion_model.input_blocks.0.0.weight is 8 x 9 x 3 x 3, but config.json asks for 8 x 4 x 3 x 3",
    ),
    "a tensor is missing": (
        renamed("first_stage_model.decoder.norm_out.bias", "elsewhere"),
        "1 of the 244 tensors that config.json asks for are missing: first_stage_model.decoder.norm_out.bias",
    ),
    "whole numbers": (
        lambda tensors: {**tensors, "model.diffusion_model.out.2.bias": torch.zeros(4, dtype=torch.int32)},
        "model.diffusion_model.out.2.bias is stored as I32, and F16, BF16, F32 are read",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_file_is_one_clear_line(kind: str, model: Path, tmp_path: Path) -> None:
    change, reason = OTHERS[kind]
    save_file(change(layout.tensors_of(model)), tmp_path / "model.safetensors")
    (problem,) = single_file.problems(tmp_path / "model.safetensors", str(model))
    assert reason in problem.reason
    assert problem.key == "model_paths.stable_diffusion" and "\n" not in problem.reason


def test_a_damaged_file_is_told(file: Path, model: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copy(file, tmp_path / "cut.safetensors"))
    os.truncate(cut, cut.stat().st_size - 100)
    (problem,) = single_file.problems(cut, str(model))
    assert problem.reason.startswith("is cut off: it has ")
    cut.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (problem,) = single_file.problems(cut, str(model))
    assert "Git LFS pointer" in problem.reason


def test_what_has_to_be_beside_it_is_told(file: Path, model: Path, tiny_model: Path, tmp_path: Path) -> None:
    for components, begin in ((None, f"{file} has weights only"), ("nowhere", "nowhere is not on this machine")):
        (problem,) = single_file.problems(file, components)
        assert problem.reason.startswith(begin) and problem.key == "model_paths.components"
        assert "unet/config.json, vae/config.json, text_encoder/config.json" in problem.reason
    components = shutil.copytree(model, tmp_path / "components", ignore=shutil.ignore_patterns("*.safetensors"))
    (components / "tokenizer" / "merges.txt").unlink()
    (components / "vae" / "config.json").unlink()
    missing = [problem.reason for problem in single_file.problems(file, str(components))]
    assert missing == ["tokenizer/merges.txt is missing", "vae/config.json is missing"]
    (problem,) = single_file.problems(file, str(tiny_model))
    assert problem.reason.startswith("does not fit unet/config.json of ")
    settings = disk.read_json(model / "text_encoder" / "config.json")
    components = shutil.copytree(model, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    disk.write_json(components / "text_encoder" / "config.json", settings | {"model_type": "clip"})
    (problem,) = single_file.problems(file, str(components))
    assert "text_encoder/config.json describes a clip, not a clip_text_model" in problem.reason
