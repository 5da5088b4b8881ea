from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from medsyn.config import EMBEDDED
from medsyn.models import model_folder, weights
from tests.models.test_weights import fake_model

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3438167540\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(weights.embedded_directory(), tmp_path / "model"))


def test_the_embedded_model_is_whole() -> None:
    assert model_folder.problems(EMBEDDED) == []


def test_a_model_that_is_nowhere_is_one_problem_that_says_what_to_do() -> None:
    (problem,) = model_folder.missing("nobody/absent-model")
    assert problem.key == "model_paths.stable_diffusion"
    assert "nobody/absent-model" in str(problem)
    assert "download" in problem.reason


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model")
    (model / "unet" / "config.json").unlink()
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    reasons = [problem.reason for problem in model_folder.missing(str(model))]
    assert reasons == ["vae/diffusion_pytorch_model.safetensors is missing", "unet/config.json is missing"]


def test_a_pickle_is_not_taken_for_weights(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model")
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    (problem,) = model_folder.missing(str(model))
    assert "pickles are not read" in problem.reason


def renamed(file: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def setting(file: Path, **settings: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda m: (m / UNET).write_text(POINTER), f"{UNET} is a Git LFS pointer, not the file itself: run `git lfs p"),
        (lambda m: (m / "tokenizer/vocab.json").write_text(POINTER), "vocab.json is a Git LFS pointer"),
        (lambda m: (m / "tokenizer/merges.txt").write_text(POINTER), "merges.txt is a Git LFS pointer"),
        (lambda m: cut(m / UNET, 3_330_892), f"{UNET} is cut off: it has 3,330,892 bytes, not 6,661,784"),
        (lambda m: cut(m / UNET, 100), f"{UNET} is cut off: 100 bytes are there"),
        (lambda m: cut(m / UNET, 0), f"{UNET} is not a safetensors file"),
        (lambda m: (m / UNET).write_bytes(b"PK" * 99), f"{UNET} is not a safetensors file"),
        (lambda m: (m / UNET).write_bytes(b"\2\0\0\0\0\0\0\0[]"), f"{UNET} is not a safetensors file"),
        (lambda m: (m / VAE).open("ab").write(b"x"), f"{VAE} is longer than its header says"),
        (
            lambda m: renamed(m / UNET, lambda name: name.replace("conv_out.w", "renamed.conv_out.w")),
            "1 of the 326 tensors that config.json asks for are missing: conv_out.weight; it has renamed.conv_out.we",
        ),
        (
            lambda m: renamed(m / TEXT, lambda name: f"transformer.{name}"),
            "36 of the 36 tensors that config.json asks for are missing: text_model.embeddings.token_embedding.weight,",
        ),
        (
            lambda m: setting(m / "vae/config.json", block_out_channels=[16, 32, 80]),
            "VAE_FILE does not fit vae/config.json: encoder.down_blocks.2.resnets.0.conv1.weight is 64 x 32 x 3 x 3",
        ),
        (
            lambda m: setting(m / "unet/config.json", _class_name="ControlNetModel"),
            "unet/config.json describes a ControlNetModel, not a UNet2DConditionModel",
        ),
        (
            lambda m: setting(m / "text_encoder/config.json", model_type="t5"),
            "text_encoder/config.json describes a t5, not a clip_text_model",
        ),
        (lambda m: (m / "vae/config.json").write_text("{"), "vae/config.json is not a readable model configuration"),
        (lambda m: setting(m / "unet/config.json", layers_per_block="2"), "is not a readable model configuration"),
        (
            lambda m: setting(m / "tokenizer/vocab.json", new=1429),
            "the tokenizer does not fit the text encoder: it has 1430 tokens, not 1429",
        ),
        (lambda m: (m / "scheduler/scheduler_config.json").write_text("no"), "scheduler_config.json is not a readable"),
        (
            lambda m: setting(m / "scheduler/scheduler_config.json", prediction_type="flow"),
            "prediction_type is 'flow', not one of epsilon, v_prediction, sample",
        ),
        (
            lambda m: setting(m / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
            "flow matching models are not Stable Diffusion v1 or v2",
        ),
    ],
)
def test_weights_that_cannot_be_loaded_are_told_by_their_headers(
    model: Path, break_it: Callable[[Path], object], reason: str
) -> None:
    break_it(model)
    (problem,) = model_folder.problems(str(model))
    assert reason.replace("VAE_FILE", VAE) in problem.reason
    assert problem.key == "model_paths.stable_diffusion"


def test_everything_is_told_at_once(model: Path) -> None:
    (model / UNET).write_text(POINTER)
    cut(model / VAE, 1000)
    (model / "scheduler/scheduler_config.json").write_text("[]")
    found = [problem.reason.partition(" ")[0] for problem in model_folder.problems(str(model))]
    assert found == [UNET, VAE, "scheduler_config.json"]


def test_further_tensors_and_the_old_names_of_the_vae_are_no_reason(model: Path) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(name: str) -> str:
        for today, before in old.items():
            name = name.replace(today, before)
        return name

    renamed(model / VAE, rename)
    tensors = load_file(model / TEXT)
    tensors["text_model.embeddings.position_ids"] = tensors["text_model.final_layer_norm.bias"].clone()
    save_file(tensors, model / TEXT)
    assert model_folder.problems(str(model)) == []


def test_other_layouts_are_told_with_the_way_out(model: Path, tmp_path: Path) -> None:
    (reason,) = (problem.reason for problem in model_folder.problems(str(tmp_path)))
    assert reason == f"is not a model; {model} is: give that"
    single = tmp_path / "single" / "v1-5.ckpt"
    single.parent.mkdir()
    single.touch()
    for source in (single, single.parent):
        (reason,) = (problem.reason for problem in model_folder.problems(str(source)))
        assert "from_single_file" in reason
        assert "diffusers directory (unet/, vae/" in reason


@pytest.mark.parametrize(
    ("beside", "way_out"),
    [
        ("diffusion_pytorch_model.fp16.safetensors", "rename it to diffusion_pytorch_model.safetensors"),
        ("diffusion_pytorch_model.safetensors.index.json", "in several files"),
    ],
)
def test_what_is_there_in_the_place_of_a_file_is_told(model: Path, beside: str, way_out: str) -> None:
    (model / UNET).rename((model / UNET).with_name(beside))
    (problem,) = model_folder.problems(str(model))
    assert problem.reason.startswith(f"{UNET} is missing; ")
    assert way_out in problem.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"cross_attention_dim": 2048, "in_channels": 4, "out_channels": 4}', "cross_attention_dim is 2048, not"),
        ("{", "is not a readable model configuration"),
        ("[]", "is not a readable model configuration"),
    ],
)
def test_parts_that_do_not_belong_together_are_told_before_they_are_loaded(
    tmp_path: Path, content: str, reason: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(weights.embedded_directory(), model)
    assert model_folder.problems(str(model)) == []
    (model / "unet" / "config.json").write_text(content)
    problem = model_folder.problems(str(model))[-1]
    assert (reason in problem.reason, problem.key) == (True, "model_paths.stable_diffusion")


def reasons_of(model: Path) -> str:
    return "\n".join(problem.reason for problem in model_folder.problems(str(model)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [], r"cut off: \d+ tokens of vocab.json are made by no merge"),
        (lambda lines: lines[: len(lines) // 3], r"cut off: \d+ tokens of vocab.json are made by no merge"),
        (lambda lines: [*lines, "q zzz"], "does not belong to vocab.json: the merge 'q zzz' is not in it"),
        (lambda lines: [*lines, "a b c"], "does not belong to vocab.json: the merge 'a b c' is not in it"),
    ],
)
def test_merges_that_are_not_those_of_the_vocabulary_are_told(
    model: Path, change: Callable[[list[str]], list[str]], told: str
) -> None:
    """With other merges a text is read as other tokens, and images are made of it without a word."""
    file = model / "tokenizer" / "merges.txt"
    version, *lines = file.read_text().splitlines()
    file.write_text("\n".join([version, *change(lines)]) + "\n")
    assert re.search(told, reasons_of(model))


def test_a_vocabulary_without_the_tokens_of_begin_and_end_is_told(model: Path) -> None:
    file = model / "tokenizer" / "vocab.json"
    tokens = json.loads(file.read_text())
    file.write_text(json.dumps({token: number for token, number in tokens.items() if not token.startswith("<|end")}))
    assert "tokenizer/vocab.json has no <|endoftext|>" in reasons_of(model)
    file.write_text('{"a": 0}')
    assert "does not belong to vocab.json" in reasons_of(model)


@pytest.mark.parametrize("value", [None, "x", [1], {}, 2**70, 10**400])
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("text_encoder", "vocab_size"),
        ("text_encoder", "num_hidden_layers"),
        ("unet", "block_out_channels"),
        ("unet", "layers_per_block"),
        ("unet", "transformer_layers_per_block"),
        ("unet", "down_block_types"),
        ("vae", "layers_per_block"),
        ("vae", "up_block_types"),
    ],
)
def test_any_value_of_a_configuration_is_answered(model: Path, file: str, key: str, value: object) -> None:
    setting(model / file / "config.json", **{key: value})
    told = reasons_of(model)  # other kinds of blocks, and numbers by level, are left to the task
    assert told or key.endswith("_block_types") or value == [1]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"dtype": "ZZ"}, "is of the unknown type 'ZZ'"),
        ({"dtype": None}, "is of the unknown type None"),
        ({"dtype": "I64"}, "is not that of its shape"),
        ({"shape": [float("inf")]}, "its header is not readable"),
        ({"shape": [1.0]}, "its header is not readable"),
        ({"shape": [-1]}, "is not that of its shape"),
        ({"data_offsets": ["0", "4"]}, "its header is not readable"),
        ({"data_offsets": [0]}, "its header is not readable"),
        ({"data_offsets": [float("inf"), 4]}, "its header is not readable"),
    ],
)
def test_a_header_that_no_library_would_load_is_told(model: Path, facts: dict[str, object], told: str) -> None:
    file = model / VAE
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name] |= facts
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert told in reasons_of(model)


def test_tensors_that_overlap_are_told(model: Path) -> None:
    file = model / VAE
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    same = [
        name for name, facts in header.items() if facts.get("shape") == header["decoder.conv_norm_out.bias"]["shape"]
    ]
    header[same[0]]["data_offsets"] = header[same[1]]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert "does not begin where the one before it ends" in reasons_of(model)
