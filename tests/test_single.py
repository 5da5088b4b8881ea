from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import medsyn
from medsyn import Generator, cli, disk, single
from medsyn.__main__ import COMMANDS
from medsyn.config import ScorerSection
from medsyn.data.images import read_image
from medsyn.errors import InputError, InputProblems
from medsyn.generation.shard import Item
from medsyn.models.policy import Policy
from medsyn.models.scorers import save_scorer
from medsyn.models.selector import Selector
from medsyn.models.synthetic import load_unet
from medsyn.models.tiny import TEXT_WIDTH

FAST = ("--height", "32", "--width", "32", "--num_inference_steps", "2", "--device", "cpu")
SCORER = ScorerSection(image_size=32, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16)


def call(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> tuple[int, str, str]:
    code = cli.dispatch("medsyn", COMMANDS, ["generate", "--output_dir", str(output), *FAST, *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("scorers")
    save_scorer(Selector(SCORER), root / "selector")
    save_scorer(Policy(SCORER, TEXT_WIDTH), root / "policy")
    return str(root / "selector"), str(root / "policy")


def test_a_prompt_becomes_marked_images_with_the_specifications_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, tmp_path, "--prompt", "Chest X-ray: clear lungs", "--img_num", "3")
    assert code == 0
    names = ["chest_xray_0.png", "chest_xray_1.png", "chest_xray_2.png", "contact_sheet.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    assert [Path(line).name for line in out.splitlines()] == names
    for name in names:
        assert read_image(tmp_path / name).synthetic
    assert Image.open(tmp_path / "contact_sheet.png").size == (64, 64)
    assert len({disk.sha256_file(tmp_path / name) for name in names}) == 4
    records = list(disk.read_jsonl(tmp_path / "manifest.jsonl"))
    assert [record["file"] for record in records] == names[:3]


def test_the_filtered_path_has_scores_in_its_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorers: tuple[str, str]
) -> None:
    filters = ("--selector_checkpoint", scorers[0], "--policy_checkpoint", scorers[1], "--quality_threshold", "0")
    code, out, _ = call(capsys, tmp_path, "--prompt", "Brain MRI: tumour", "--modality", "BrainMRI", *filters)
    assert code == 0
    name = Path(out.splitlines()[0]).name
    record = next(disk.read_jsonl(tmp_path / "manifest.jsonl"))
    assert name == f"Brain_MRI_1_selector_{record['selector']:.2f}_policy_{record['policy']:.2f}.png"


def test_a_threshold_that_nothing_passes_ends_with_70_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorers: tuple[str, str]
) -> None:
    filters = ("--selector_checkpoint", scorers[0], "--policy_checkpoint", scorers[1], "--quality_threshold", "1")
    code, out, _ = call(capsys, tmp_path, "--prompt", "CT: nodule", *filters, "--max_attempts", "2")
    assert code == 70 and out == "image 1: none of 2 candidates passed\n"
    assert not list(tmp_path.glob("*.png"))


def test_environment_variables_stand_in_for_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_PROMPT", "Fundus: drusen")
    monkeypatch.setenv("NUM_IMAGES", "2")
    monkeypatch.setenv("E2E_OUTPUT_DIR", str(tmp_path))
    assert cli.dispatch("medsyn", COMMANDS, ["generate", *FAST]) == 0
    assert {path.name for path in tmp_path.glob("fundus_*.png")} == {"fundus_0.png", "fundus_1.png"}
    assert Image.open(tmp_path / "fundus_0.png").mode == "RGB"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompt", " "], "--prompt: there is nothing to show"),
        (["--prompt", "clear lungs"], "--prompt: which modality?"),
        (["--prompt", "CT: a", "--modality", "ultrasound"], "--modality: 'ultrasound' is not one of the five"),
        (["--prompt", "CT: a", "--device", "tpu"], "--device: auto, cpu or cuda:N, got 'tpu'"),
        (["--prompt", "CT: a", "--height", "33"], "height and width: are multiples of 8"),
        (["--prompt", "CT: a", "--img_num", "0"], "--img_num: at least 1"),
        (["--prompt", "CT: a", "--guidance_scale", "0.5"], "generation.guidance_scale"),
        (["--prompt", "CT: a", "--scheduler", "lcm", "--num_inference_steps", "60"], "lcm takes 1 to 50 steps, not 60"),
        (["--prompt", "CT: a", "--precision", "float16"], "device.precision: float16 needs a GPU"),
        (["--prompt", "CT: a", "--pretrained_model", "no/such"], "no/such"),
        (["--prompt", "CT: a", "--model_used", "/nowhere"], "/nowhere: holds no unet/"),
        (["--prompt", "CT: a", "--selector_checkpoint", "/nowhere"], "needs both a Selector and a Policy"),
        (
            ["--prompt", "CT: a", "--selector_checkpoint", "/nowhere", "--policy_checkpoint", "/nowhere"],
            "/nowhere: holds no saved Selector",
        ),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    code, out, err = call(capsys, tmp_path, *arguments)
    assert code == 65 and out == ""
    assert told in err and len(err.splitlines()) == 1


def test_a_campaigns_directory_and_one_that_cannot_be_written_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "campaign").mkdir()
    (tmp_path / "campaign" / "campaign.json").write_text("{}")
    assert "is a campaign's directory" in call(capsys, tmp_path / "campaign", "--prompt", "CT: a")[2]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in call(capsys, tmp_path / "file" / "x", "--prompt", "CT: a")[2]


def test_the_same_command_of_a_campaign_is_still_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert not single.is_meant(["configs/tiny.yaml", "--task", "ct-00000", "generation.img_num=2"])
    assert single.is_meant(["--prompt=CT: nodule"]) and single.is_meant(["--img_num", "3"])
    with pytest.raises(SystemExit):
        cli.dispatch("medsyn", COMMANDS, ["generate", "--help"])
    out = capsys.readouterr().out
    assert "--pretrained_model" in out and "--task" in out


# --- the import path for tools --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(device="cpu", height=32, seed=3, num_inference_steps=2, batch_size=2, batches_per_block=2)


def test_the_generator_is_an_iterator_over_prompts_and_replicates(generator: Generator) -> None:
    images = list(generator.images(["CT: normal", "Fundus: drusen"], count=3))
    assert [(image.item.prompt, image.item.replicate) for image in images] == [
        *itertools.product(["CT: normal", "Fundus: drusen"], range(3))
    ]
    assert [image.pixels.shape for image in images if image.pixels is not None] == [(32, 32, 1)] * 3 + [(32, 32, 3)] * 3
    assert all(image.accepted for image in images)
    assert len({image.png for image in images}) == 6


def test_an_image_does_not_depend_on_what_else_is_asked_for(generator: Generator) -> None:
    (alone,) = generator.images("CT: nodule, left", count=1)
    beside = list(generator.images(["CT: normal", "CT: nodule, left"], count=3))[3]
    assert alone.png == beside.png and alone.item == beside.item


def test_items_carry_their_own_settings(generator: Generator) -> None:
    items = [Item("a", "CT: normal", 0, seed=5), Item("b", "CT: normal", 0, seed=5, num_inference_steps=3)]
    one, other = generator.images(items)
    assert one.record["seed"] == other.record["seed"]
    assert not np.array_equal(one.pixels, other.pixels)  # type: ignore[arg-type]


def test_saving_writes_the_marked_file(generator: Generator, tmp_path: Path) -> None:
    (image,) = generator.images("CT: normal")
    image.save(tmp_path / "a" / "x.png")
    assert read_image(tmp_path / "a" / "x.png").synthetic


def test_mistakes_of_the_caller_are_told(generator: Generator) -> None:
    with pytest.raises(InputError, match="which modality"):
        list(generator.images("a lung"))
    with pytest.raises(InputProblems, match=r"batch_sise.*did you mean"):
        Generator(batch_sise=3)
    with pytest.raises(AttributeError, match="Generatr"):
        medsyn.Generatr  # noqa: B018


def test_importing_medsyn_imports_no_torch() -> None:
    code = "import sys, medsyn; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    root = Path(medsyn.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_a_folder_inside_a_campaign_or_with_images_of_another_run_is_refused(tmp_path: Path) -> None:
    block = tmp_path / "campaign" / "work" / "block-000000"
    block.mkdir(parents=True)
    (tmp_path / "campaign" / "campaign.json").write_text("{}")
    with pytest.raises(InputError, match="is a campaign's directory, or in one"):
        single._output(block)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "manifest.jsonl").touch()
    with pytest.raises(InputError, match="holds the images of another run"):
        single._output(tmp_path / "images")


def test_images_come_in_the_order_of_the_prompts_and_a_prompt_given_twice_makes_two(generator: Generator) -> None:
    prompts = ["CT: a", "MRI: b", "CT: c", "CT: a"]
    images = list(generator.images(prompts))
    assert [image.record["prompt"] for image in images] == prompts
    assert len({image.record["id"] for image in images}) == len(images)


@pytest.mark.parametrize(("key", "value"), [("cross_attention_dim", 48), ("in_channels", 9)])
def test_a_unet_of_another_architecture_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: int
) -> None:
    config = dict(load_unet("embedded", torch.device("cpu"), torch.float32).config)
    UNet2DConditionModel.from_config(config | {key: value}).save_pretrained(str(tmp_path / "model" / "unet"))
    code, _, error = call(capsys, tmp_path / "out", "--prompt", "CT: x", "--model_used", str(tmp_path / "model"))
    assert code == 65
    assert "a UNet of another architecture than" in error and f"{key} is {value}" in error


def test_a_unet_that_cannot_be_read_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_unet("embedded", torch.device("cpu"), torch.float32).save_pretrained(str(tmp_path / "model" / "unet"))
    next((tmp_path / "model" / "unet").glob("*.safetensors")).write_bytes(b"torn")
    code, _, error = call(capsys, tmp_path / "out", "--prompt", "CT: x", "--model_used", str(tmp_path / "model"))
    assert (code, "holds no UNet that can be read" in error) == (65, True), error
