"""A prompt that is given a campaign's models has the campaign's settings, unless it says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medsyn import config
from medsyn.errors import InputProblems
from medsyn.generation.api import defaults, options
from medsyn.generation.api.arguments import given_settings
from medsyn.generation.api.prompts import check_prompts
from medsyn.generation.filter import Rule
from medsyn.models.weights import locate

SETTINGS: dict[str, Any] = {
    "campaign": {"name": "mine", "seed": 7},
    "data": {"resolution": 96},
    "generation": {
        "batch_size": 3,
        "guidance_scale": 2.5,
        "num_inference_steps": 9,
        "num_candidates": 4,
        "quality_threshold": 0.3,
        "min_policy_score": 0.2,
    },
}


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "mine"
    unet = directory / "work" / "finetune" / "ct" / "model" / "unet"
    unet.parent.mkdir(parents=True)
    unet.symlink_to(locate("embedded") / "unet")
    (directory / "campaign.json").write_text("{}")
    (directory / "config.yaml").write_text(config.save(config.validate(SETTINGS, "test")))
    return directory


@pytest.fixture
def models(campaign: Path) -> dict[str, Any]:
    return {"device": "cpu", "finetuned": campaign / "work" / "finetune" / "ct" / "model"}


def test_the_campaigns_settings_are_the_defaults(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESOLUTION", "512")  # of the campaign that is submitted next, not of this one
    made = given_settings(models)
    section = made.config.generation
    assert (made.height, made.width, made.config.campaign.seed, section.batch_size) == (96, 96, 7, 3)
    assert (section.guidance_scale, section.num_inference_steps) == (2.5, 9)


@pytest.mark.parametrize("recorded", [None, 1, 3])
def test_a_model_reads_as_much_of_a_prompt_as_it_was_trained_with_wherever_it_is(
    recorded: int | None, tmp_path: Path
) -> None:
    model = tmp_path / "copied"
    model.mkdir()
    (model / "unet").symlink_to(locate("embedded") / "unet")
    if recorded is not None:
        of_it = {"data.text_chunks": recorded} if recorded > 1 else {}
        (model / "facts.json").write_text(json.dumps({"finetune.max_train_steps": 6, **of_it}))
    assert given_settings({"device": "cpu", "finetuned": model}).config.data.chunks == (recorded or 1)


def test_what_is_given_wins(models: dict[str, Any]) -> None:
    made = given_settings({**models, "seed": 0, "height": 64, "width": 32, "guidance_scale": 7.5, "batch_size": 1})
    section = made.config.generation
    assert (made.height, made.width, made.config.campaign.seed) == (64, 32, 0)
    assert (section.guidance_scale, section.num_inference_steps, section.batch_size) == (7.5, 9, 1)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({}, (4, 10, 0.3, 0.2)),
        ({"min_policy_score": None, "quality_threshold": 0.0}, (4, 10, 0.0, None)),
        ({"max_attempts": 2}, (2, 2, 0.3, 0.2)),
        ({"num_candidates": 1}, (1, 10, 0.3, 0.2)),
    ],
)
def test_the_filter_is_the_campaigns(
    models: dict[str, Any], campaign: Path, given: dict[str, Any], rule: tuple[Any, ...]
) -> None:
    asked = {**models, "selector": campaign, "policy": campaign, **given}
    made, found = options.configuration(asked, defaults.origin(asked)[0])
    assert made is not None and found == []
    of = Rule.of(made.generation, "filtered")
    assert (of.num_candidates, of.max_attempts, of.quality_threshold, of.min_policy_score) == rule


def test_a_campaign_that_cannot_be_read_is_told(models: dict[str, Any], campaign: Path) -> None:
    (campaign / "config.yaml").write_text("generation: {img_num: 0}\n")
    with pytest.raises(InputProblems, match=r"finetuned: its campaign cannot be read: .*generation.img_num"):
        given_settings(models)


def test_models_of_no_campaign_have_the_usual_defaults(tmp_path: Path) -> None:
    (tmp_path / "unet").symlink_to(locate("embedded") / "unet")
    made = given_settings({"device": "cpu", "finetuned": tmp_path})
    assert (made.height, made.config.campaign.seed, made.config.generation.batch_size) == (64, 0, 4)


@pytest.mark.parametrize(
    ("prompt", "given", "modality", "text"),
    [
        ("Brain MRI: mass", None, "Brain MRI", "Brain MRI: mass"),
        ("mass", "MRI brain", "Brain MRI", "Brain MRI: mass"),
        ("MRI: mass", None, "MRI", "MRI: mass"),
        ("Breast MRI: mass", None, "MRI", "Breast MRI: mass"),
        ("Chest CT: mass", None, "CT", "Chest CT: mass"),
    ],
)
def test_a_prompt_is_of_the_modalities_of_the_campaign_and_of_the_five(
    campaign: Path, models: dict[str, Any], prompt: str, given: str | None, modality: str, text: str
) -> None:
    tree = {**SETTINGS, "data": {"resolution": 96, "modalities": ["brain mri"]}}
    (campaign / "config.yaml").write_text(config.save(config.validate(tree, "test")))
    (wanted,), warnings = check_prompts(prompt, 1, given, given_settings(models).config)
    assert (wanted.modality, wanted.item.prompt) == (modality, text)
    assert not any("left out" in str(warning) for warning in warnings)
    (plain,), _ = check_prompts(prompt, 1, given)
    assert plain.modality in ("MRI", "CT"), "without a campaign there are the five"


def test_a_generator_of_one_part_of_the_body_makes_that(campaign: Path) -> None:
    tree = {**SETTINGS, "data": {"resolution": 96, "modalities": ["Brain MRI", "Breast MRI"]}}
    made = config.validate(tree, "test")
    (wanted,), _ = check_prompts("mass", 1, None, made, only="Brain MRI")
    assert (wanted.modality, wanted.item.prompt) == ("Brain MRI", "Brain MRI: mass")
    found: list[Any] = []
    assert options.modality_of(found, "mri_breast", made.data.modalities) == "Breast MRI"
    assert options.modality_of(found, "MRI", made.data.modalities) is None
    assert str(found[0]) == "modality: 'MRI' is none of the campaign's: Brain MRI, Breast MRI"
