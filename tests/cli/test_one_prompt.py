from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import medsyn
from medsyn import disk
from medsyn.__main__ import COMMANDS
from medsyn.campaign.state import locks
from medsyn.cli import app, contact_sheet, image_folder, one_prompt
from medsyn.config import ScorerSection, save, validate
from medsyn.data.images.read import read_image
from medsyn.errors import InputError
from medsyn.generation.api.options import OPTIONS
from medsyn.generation.write.provenance import Sources
from medsyn.models.policy import Policy
from medsyn.models.scorers import save_scorer
from medsyn.models.scores import Card, Evidence, Interval, Threshold
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import load_unet
from medsyn.models.tiny import TEXT_WIDTH
from medsyn.models.weights import embedded_directory
from medsyn.stage import CampaignDirectory

FAST = ("--height", "32", "--width", "32", "--num_inference_steps", "2", "--device", "cpu")
SCORER = ScorerSection(image_size=32, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16)


def call(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> tuple[int, str, str]:
    code = app.dispatch("medsyn", COMMANDS, ["generate", "--output_dir", str(output), *FAST, *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def sheet_size(columns: int, rows: int, lines: int) -> tuple[int, int]:
    side, gap = contact_sheet.SIDE, contact_sheet.GAP
    return columns * (side + gap) + gap, rows * (side + gap + lines * contact_sheet.LINE) + gap


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
    assert Image.open(tmp_path / "contact_sheet.png").size == sheet_size(columns=2, rows=2, lines=1)
    assert len({disk.sha256_file(tmp_path / name) for name in names}) == 4
    records = list(disk.read_jsonl(tmp_path / "manifest.jsonl"))
    assert [record["file"] for record in records] == names[:3]


def test_a_selector_asked_for_what_it_has_not_seen_says_so_once(
    scorers: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threshold = Threshold(threshold=0, good=9, poor=9)
    evidence = Evidence(auroc=Interval(value=0.9, low=0.8, high=1, n=40))
    card = Card(modalities=["CT"], thresholds={"CT": threshold}, evidence=evidence, sampling={"guidance_scale": [3.0]})
    save_scorer(Selector(SCORER, card), tmp_path / "selector")
    filters = ("--selector_checkpoint", str(tmp_path / "selector"), "--policy_checkpoint", scorers[1])
    code, _, said = call(capsys, tmp_path / "out", "--prompt", "CT: nodule", *filters, "--max_attempts", "1")
    assert code == 0, said
    assert said.count("sampled otherwise: guidance_scale 7.5 (seen: 3.0)") == 1
    code, _, said = call(capsys, tmp_path / "out", "--prompt", "CT: nodule", *filters, "--guidance_scale", "3")
    assert code == 0 and said == ""
    code, _, said = call(capsys, tmp_path / "other", "--prompt", "OCT: drusen", *filters)
    assert code == 65 and "has no threshold of its own for OCT (it has some for CT)" in said
    assert not (tmp_path / "other").exists()


def test_a_campaign_stands_for_its_models_of_the_prompts_modality(
    scorers: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {
        "campaign": {"name": "mine", "dir": str(tmp_path / "mine")},
        "data": {"resolution": 32},
        "training": {"stage": 1},
        "selector": {"require_auroc": None},
        "generation": {"num_candidates": 1, "quality_threshold": 0.0},
    }
    config, directory = validate(tree, "test"), CampaignDirectory(tmp_path / "mine")
    unet = disk.make_directory(directory.finetuned_unet("MRI")) / "unet"
    shutil.copytree(embedded_directory() / "unet", unet)
    for scorer, place in zip(scorers, (directory.selector(), directory.policy()), strict=True):
        shutil.copytree(scorer, place)
    directory.config.write_text(save(config))
    directory.campaign_file.write_text("{}")
    flags = ("--model_used", "--selector_checkpoint", "--policy_checkpoint")
    asked = ("--prompt", "MRI: tumour", *(word for flag in flags for word in (flag, str(directory.root))))
    assert call(capsys, tmp_path / "out", *asked)[0] == 0
    (record,) = disk.read_jsonl(tmp_path / "out" / "manifest.jsonl")
    mri = Sources(config, "MRI", directory).facts("filtered")
    assert (record["model_fingerprint"], record["quality_threshold"]) == (mri["model_fingerprint"], 0.0)
    unet.rename(tmp_path / "unet")
    code, _, said = call(capsys, tmp_path / "other", *asked)
    assert code == 65 and "--model_used: " in said and "the task 'finetune mri' makes it" in said


def test_prompts_one_after_the_other_share_a_folder_and_overwrite_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The specification's three baseline commands, and the first of them again with fewer images."""
    asked = (
        ("Chest X-ray: clear lungs", 3),
        ("Brain MRI: normal", 2),
        ("Fundus: clear", 1),
        ("Chest X-ray: clear lungs", 2),
    )
    hashes: dict[str, str] = {}
    for prompt, count in asked:
        assert call(capsys, tmp_path, "--use_pretrained_only", "--prompt", prompt, "--img_num", str(count))[0] == 0
        files = {path.name: disk.sha256_file(path) for path in tmp_path.glob("*_[0-9].png")}
        assert hashes.items() <= files.items()
        hashes = files
    names = [
        *(f"chest_xray_{number}.png" for number in (0, 1, 2)),
        "brain_mri_0.png",
        "brain_mri_1.png",
        "fundus_0.png",
    ]
    names += ["chest_xray_3.png", "chest_xray_4.png"]
    records = list(disk.read_jsonl(tmp_path / "manifest.jsonl"))
    assert [record["file"] for record in records] == names
    assert [record["replicate"] for record in records] == [0, 1, 2, 0, 1, 0, 3, 4]
    assert len(set(hashes.values())) == len(names)  # asked again, a prompt gives further images
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert (sheet.mode, sheet.size) == ("RGB", sheet_size(columns=3, rows=3, lines=1))


def test_other_settings_of_a_prompt_begin_with_the_same_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--guidance_scale", "2"), ("--seed", "7"), ("--guidance_scale", "2")):
        assert call(capsys, tmp_path, "--prompt", "CT: nodule", *more)[0] == 0
    records = list(disk.read_jsonl(tmp_path / "manifest.jsonl"))
    assert [record["replicate"] for record in records] == [0, 0, 0, 1]
    assert records[0]["seed"] == records[1]["seed"] != records[2]["seed"]


def test_a_name_that_is_taken_is_not_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "CT_0.PNG").write_text("mine")
    for _ in range(2):
        assert call(capsys, tmp_path, "--prompt", "CT: nodule")[0] == 0
        (tmp_path / "ct_1.png").unlink(missing_ok=True)
    assert [record["file"] for record in disk.read_jsonl(tmp_path / "manifest.jsonl")] == ["ct_1.png", "ct_2.png"]
    assert (tmp_path / "CT_0.PNG").read_text() == "mine"


def test_a_damaged_image_is_left_off_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, tmp_path, "--prompt", "CT: nodule")[0] == 0
    damaged = tmp_path / "ct_0.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    code, out, err = call(capsys, tmp_path, "--prompt", "CT: nodule")
    assert (code, err) == (0, f"warning: {damaged}: is damaged; it is not on the contact sheet\n")
    assert [Path(line).name for line in out.splitlines()] == ["ct_1.png", "contact_sheet.png"]
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == sheet_size(columns=1, rows=1, lines=1)


@pytest.mark.parametrize("file", ["../ct_0.png", {"a": 1}])
def test_a_manifest_that_names_other_files_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: object
) -> None:
    assert call(capsys, tmp_path, "--prompt", "CT: nodule")[0] == 0
    (record,) = disk.read_jsonl(tmp_path / "manifest.jsonl")
    (tmp_path / "manifest.jsonl").write_text(json.dumps(record | {"file": file}) + "\n")
    code, _, err = call(capsys, tmp_path, "--prompt", "CT: nodule")
    assert code == 65 and "manifest.jsonl was not written by this command" in err


def test_two_commands_at_once_do_not_write_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locks.exclusive(tmp_path / "manifest.jsonl"):
        code, _, err = call(capsys, tmp_path, "--prompt", "CT: nodule")
    assert code == 75 and f"another process is at work on {tmp_path}; try again when it has ended" in err


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
    assert app.dispatch("medsyn", COMMANDS, ["generate", *FAST]) == 0
    assert {path.name for path in tmp_path.glob("fundus_*.png")} == {"fundus_0.png", "fundus_1.png"}
    assert Image.open(tmp_path / "fundus_0.png").mode == "RGB"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "1"], "--prompt: there is no prompt"),
        (["--prompt", " "], "--prompt: '' says nothing"),
        (["--prompt", ""], "--prompt: '' says nothing"),
        (["--prompt", "CT:"], "--prompt: 'CT:' says nothing"),
        (["--prompt", "CT: a\nb"], "--prompt: 'CT: a\\nb' contains a line break"),
        (["--prompt", "CT: a\0b"], "--prompt: contains a NUL byte"),
        (["--prompt", "clear lungs"], "--prompt: 'clear lungs' names no modality"),
        (["--prompt", "CT: a", "--negative_prompt", "b\nc"], "--negative_prompt: 'b\\nc' contains a line break"),
        (["--prompt", "CT: a", "--modality", "ultrasound"], "--modality: 'ultrasound' is not one of the five"),
        (["--prompt", "CT: a", "--device", "tpu"], "--device: must be auto, cpu or cuda:N, got 'tpu'"),
        (["--prompt", "CT: a", "--device", ""], "--device: must be auto, cpu or cuda:N, got ''"),
        (["--prompt", "CT: a", "--device", "cuda:7"], "--device: there is no GPU cuda:7"),
        (["--prompt", "CT: a", "--modality", ""], "--modality: '' is not one of the five"),
        (["--prompt", "CT: a", "--modality", "Fundos"], "did you mean Fundus?"),
        (["--prompt", "CT: a", "--height", "33"], "--height: must be a multiple of 8 from 32 to 1024, got 33"),
        (["--prompt", "CT: a", "--height", "0"], "--height: must be a multiple of 8 from 32 to 1024, got 0"),
        (["--prompt", "CT: a", "--width", "abc"], "--width: must be a multiple of 8 from 32 to 1024, got 'abc'"),
        (["--prompt", "CT: a", "--img_num", "0"], "--img_num: must be a whole number from 1 to 1000000, got 0"),
        (["--prompt", "CT: a", "--img_num", "-3"], "--img_num: must be a whole number from 1 to 1000000, got -3"),
        (["--prompt", "CT: a", "--img_num", "1e3"], "--img_num: must be a whole number from 1 to 1000000, got 1000.0"),
        (["--prompt", "CT: a", "--batch_size", "0"], "--batch_size: must be a whole number from 1 to 1024, got 0"),
        (["--prompt", "CT: a", "--num_inference_steps", "0"], "--num_inference_steps: input should be greater"),
        (["--prompt", "CT: a", "--num_inference_steps", "2.5"], "--num_inference_steps: input should be a valid int"),
        (["--prompt", "CT: a", "--seed", "-1"], "--seed: input should be greater than or equal to 0"),
        (["--prompt", "CT: a", "--seed", str(2**70)], "--seed: input should be less than or equal to"),
        (["--prompt", "CT: a", "--guidance_scale", "0.5"], "--guidance_scale: input should be greater"),
        (["--prompt", "CT: a", "--guidance_scale", "nan"], "--guidance_scale: input should be a finite number"),
        (["--prompt", "CT: a", "--guidance_scale", "inf"], "--guidance_scale: input should be a finite number"),
        (["--prompt", "CT: a", "--guidance_scale", "1e9"], "--guidance_scale: input should be less than"),
        (["--prompt", "CT: a", "--scheduler", "eulr"], "did you mean euler?"),
        (["--prompt", "CT: a", "--precision", "float8"], "--precision: input should be 'auto'"),
        (["--prompt", "CT: a", "--quality_threshold", "0.6"], "--quality_threshold: belongs to the filter"),
        (["--prompt", "CT: a", "--scheduler", "lcm", "--num_inference_steps", "60"], "lcm takes 1 to 50 steps, not 60"),
        (["--prompt", "CT: a", "--precision", "float16"], "--precision: float16 needs a GPU"),
        (["--prompt", "CT: a", "--pretrained_model", "no/such"], "no/such"),
        (["--prompt", "CT: a", "--model_used", "/nowhere"], "--model_used: /nowhere does not contain unet/"),
        (["--prompt", "CT: a", "--output_dir", ""], "--output_dir: must name a directory, got ''"),
        (
            ["--prompt", "CT: a", "--pretrained_model", " "],
            "--pretrained_model: must be `embedded`, a diffusers directory",
        ),
        (["--prompt", "CT: a", "--model_used", ""], "--model_used: must be a directory, got ''"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    code, out, err = call(capsys, tmp_path, *arguments)
    assert code == 65 and out == ""
    assert told in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--promt", "CT: a"], "unrecognized arguments: --promt CT: a; did you mean --prompt?"),
        (["--prompt", "CT: a", "--img-num=3"], "unrecognized arguments: --img-num=3; did you mean --img_num?"),
        (
            ["--prompt", "CT: a", "--steps", "3"],
            "unrecognized arguments: --steps 3; did you mean --num_inference_steps?",
        ),
        (["--prompt", "CT: a", "--cfg=3"], "unrecognized arguments: --cfg=3; did you mean --guidance_scale?"),
        (["--prompt", "CT: a", "--replicates", "3"], "unrecognized arguments: --replicates 3; did you mean --img_num?"),
        (["--prompt", "CT: a", "--seed"], "argument --seed: expected one argument"),
    ],
)
def test_a_misspelt_flag_is_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        app.dispatch("medsyn", COMMANDS, ["generate", *arguments])
    assert capsys.readouterr().err == f"medsyn generate: {told}\n"


def test_every_flag_is_one_of_the_options_and_every_option_with_a_flag_has_it() -> None:
    flags = {option.flag for option in OPTIONS.values() if option.flag}
    assert one_prompt.parser("").flags() == flags | {"--use_pretrained_only", "--output_dir"}


def told_of(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> list[str]:
    """The flags and variables that are named, in order."""
    code, out, err = call(capsys, output, *arguments)
    assert (code, out) == (65, "")
    return [line.partition(":")[0] for line in err.splitlines()]


def test_everything_wrong_is_told_at_once_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = (
        "--prompt",
        "CT:",
        "--height",
        "0",
        "--batch_size",
        "0",
        "--seed",
        "-1",
        "--scheduler",
        "x",
        "--device",
        "y",
    )
    paths = ("--pretrained_model", "no/such", "--model_used", "/nowhere", "--selector_checkpoint", scorers[1])
    limits = ("--quality_threshold", "2", "--max_attempts", "0", "--img_num", "0")
    flags = told_of(capsys, tmp_path / "out", *wrong, *paths, *limits)
    assert set(flags) == {flag for flag in (*wrong, *paths, *limits) if flag.startswith("--")} | {"--policy_checkpoint"}
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("BASE_PROMPT", "CT: " + "a" * 20_000)
    monkeypatch.setenv("NUM_IMAGES", "abc")
    named = told_of(capsys, tmp_path)
    assert named == ["environment variable NUM_IMAGES", "environment variable BASE_PROMPT"]


def test_a_text_of_a_million_characters_is_told_in_one_short_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, tmp_path, "--prompt", "CT: " + "x" * 10**6)
    assert code == 65 and err.startswith("--prompt: 'CT: xxx") and len(err) < 300


def test_bytes_that_are_no_utf_8_are_told_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medsyn", "generate", "--output_dir", str(tmp_path)]
    environment = {**os.environb, b"PYTHONPATH": os.fsencode(Path(medsyn.__file__).parents[1])}
    for arguments, variables, told in (
        ([b"--prompt", b"CT: \xff"], {}, "--prompt"),
        ([], {b"BASE_PROMPT": b"CT: \xff"}, "environment variable BASE_PROMPT"),
        ([b"--prompt", b"CT: a", b"--output_dir", b"/tmp/\xff"], {}, "--output_dir"),
        ([b"--prompt", b"CT: a", b"--pretrained_model", b"\xff"], {}, "--pretrained_model"),
    ):
        ended = subprocess.run(
            [*command, "--seed", "1", *arguments], capture_output=True, env={**environment, **variables}, check=False
        )
        assert ended.returncode == 65
        assert ended.stderr.decode().startswith(told) and ended.stderr.count(b"\n") == 1


def test_a_scorer_of_the_other_kind_or_for_another_text_encoder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorers: tuple[str, str]
) -> None:
    save_scorer(Policy(SCORER, TEXT_WIDTH + 1), tmp_path / "policy")
    selector, policy = scorers
    for first, second, told in (
        (policy, policy, "--selector_checkpoint: " + policy + " is a Policy, not a Selector"),
        (selector, "/nowhere", "--policy_checkpoint: /nowhere is not a saved Policy"),
        (selector, str(tmp_path / "policy"), "text features"),
    ):
        flags = ("--prompt", "CT: a", "--selector_checkpoint", first, "--policy_checkpoint", second)
        code, _, err = call(capsys, tmp_path / "out", *flags)
        assert code == 65 and told in err and err.count("\n") == 1


def test_a_flag_that_is_zero_is_not_one_that_is_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scorers: tuple[str, str]
) -> None:
    filters = ("--selector_checkpoint", scorers[0], "--policy_checkpoint", scorers[1], "--quality_threshold", "0")
    code, out, _ = call(capsys, tmp_path, "--prompt", "CT: a", "--seed", "0", *filters, "--max_attempts", "1")
    assert code == 0 and "selector" in out


def test_what_is_worth_knowing_of_a_prompt_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, tmp_path, "--prompt", "CT: " + "nodule " * 200)
    assert code == 0 and err.startswith("warning: --prompt: longer than about 75 CLIP tokens")


def test_a_warning_about_the_prompt_is_told_once_by_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    code, _, err = call(capsys, tmp_path, "--prompt", "CT: a", "--modality", "OCT")
    assert (code, err) == (0, "warning: --prompt: the text says CT, the modality is OCT\n")
    assert caplog.messages == []


def test_the_contact_sheet_has_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "SHEET_IMAGES", 2)
    assert call(capsys, tmp_path, "--prompt", "CT: a", "--img_num", "3")[0] == 0
    assert Image.open(tmp_path / "contact_sheet.png").size == sheet_size(columns=2, rows=1, lines=1)
    assert len(list(tmp_path.glob("ct_*.png"))) == 3


def test_a_campaigns_directory_and_one_that_cannot_be_written_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "campaign").mkdir()
    (tmp_path / "campaign" / "campaign.json").write_text("{}")
    assert "is a campaign's directory" in call(capsys, tmp_path / "campaign", "--prompt", "CT: a")[2]
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300), Path("/proc/x")):
        code, _, err = call(capsys, folder, "--prompt", "CT: a")
        assert code == 65 and err.startswith("--output_dir: ") and "cannot be written" in err
        assert err.count("\n") == 1


def test_the_same_command_of_a_campaign_is_still_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert not one_prompt.is_meant(["configs/tiny.yaml", "--task", "ct-00000", "generation.img_num=2"])
    assert one_prompt.is_meant(["--prompt=CT: nodule"]) and one_prompt.is_meant(["--img_num", "3"])
    with pytest.raises(SystemExit):
        app.dispatch("medsyn", COMMANDS, ["generate", "--help"])
    out = capsys.readouterr().out
    assert "--pretrained_model" in out and "--task" in out


def test_a_folder_inside_a_campaign_or_of_another_program_is_refused(tmp_path: Path) -> None:
    block = tmp_path / "campaign" / "work" / "block-000000"
    block.mkdir(parents=True)
    (tmp_path / "campaign" / "campaign.json").write_text("{}")
    with pytest.raises(InputError, match="is a campaign's directory or inside one"):
        image_folder.check_folder(str(block))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "manifest.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(InputError, match="was not written by this command"):
        image_folder.check_folder(str(tmp_path / "images"))


@pytest.mark.parametrize(("key", "value"), [("cross_attention_dim", 48), ("in_channels", 9)])
def test_a_unet_of_another_architecture_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: int
) -> None:
    config = dict(load_unet("embedded", torch.device("cpu"), torch.float32).config)
    UNet2DConditionModel.from_config(config | {key: value}).save_pretrained(str(tmp_path / "model" / "unet"))
    code, _, error = call(capsys, tmp_path / "out", "--prompt", "CT: x", "--model_used", str(tmp_path / "model"))
    assert code == 65
    assert "the UNet does not fit" in error and f"{key} is {value}" in error


def test_a_unet_that_cannot_be_read_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_unet("embedded", torch.device("cpu"), torch.float32).save_pretrained(str(tmp_path / "model" / "unet"))
    next((tmp_path / "model" / "unet").glob("*.safetensors")).write_bytes(b"torn")
    code, _, error = call(capsys, tmp_path / "out", "--prompt", "CT: x", "--model_used", str(tmp_path / "model"))
    assert (code, "unet/diffusion_pytorch_model.safetensors is not a safetensors file" in error) == (65, True), error
