"""What an arm is, and which arms can be told apart."""

from __future__ import annotations

from typing import Any

import pytest

from medsyn.arms import MODES, Arm, arm_of, filters, steps, title
from medsyn.campaign.tasks import results_of
from medsyn.config import Config, validate
from medsyn.errors import InputProblems
from medsyn.generation.write.provenance import config_fingerprint


def config(modes: list[str], **generation: Any) -> Config:
    return validate({"generation": {"modes": modes, **generation}}, "test")


def arms(*modes: str, aligns: bool = True) -> list[Arm]:
    return [arm_of(mode, "pretrained", "aligned" if aligns else "finetuned") for mode in modes]


def test_baseline_and_filtered_mean_what_the_configuration_says() -> None:
    assert config(["baseline", "filtered"]).arms == [
        Arm("baseline", "pretrained", False),
        Arm("filtered", "finetuned", True),
    ]
    assert config(["baseline"], baseline_model="finetuned").arms == [Arm("baseline", "finetuned", False)]
    assert arm_of("filtered", "pretrained", "aligned") == Arm("filtered", "aligned", True)
    assert {mode for mode in MODES if filters(mode)} == {"filtered", "finetuned-filtered"}
    assert len({title(mode) for mode in MODES}) == len(MODES)


@pytest.mark.parametrize(
    ("modes", "generation", "reason"),
    [
        (["baseline", "pretrained"], {}, r"baseline and pretrained, .* or choose another generation\.baseline_model"),
        (["finetuned", "baseline"], {"baseline_model": "finetuned"}, "finetuned and baseline, which would be the same"),
        (["filtered", "finetuned-filtered"], {}, r"of the finetuned model, filtered.*or set align\.enabled=true"),
        (["baseline", "baseline"], {}, r"baseline twice.*: leave one out$"),
        (["aligned"], {}, r"aligned, which needs align\.enabled=true"),
        (["best"], {}, "'finetuned-filtered'"),
    ],
)
def test_arms_that_would_be_the_same_or_have_no_model_are_refused(
    modes: list[str], generation: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputProblems, match=reason) as refused:
        config(modes, **generation)
    assert "generation.modes" in str(refused.value)


def test_a_filter_needs_its_selector_whatever_the_arm_is_called() -> None:
    stage1 = {"training": {"stage1": {"train_selector": False}}}
    with pytest.raises(InputProblems, match="finetuned-filtered, which needs training"):
        validate({"generation": {"modes": ["pretrained", "finetuned-filtered"]}, **stage1}, "test")
    assert not validate({"generation": {"modes": ["pretrained", "finetuned"]}, **stage1}, "test").generation.filters


@pytest.mark.parametrize(
    ("modes", "reads"),
    [
        (["pretrained"], ()),
        (["finetuned"], ("finetune",)),
        (["pretrained", "finetuned-filtered"], ("finetune", "rlhf-stage1", "rlhf-stage2")),
    ],
)
def test_generation_waits_for_what_its_arms_need(modes: list[str], reads: tuple[str, ...]) -> None:
    assert results_of("generate", config(modes)) == reads


def test_an_image_depends_on_no_other_arms_settings() -> None:
    one, other = (config(["pretrained", "finetuned-filtered"], max_attempts=most) for most in (5, 6))
    assert config_fingerprint(one, "pretrained") == config_fingerprint(other, "pretrained")
    assert config_fingerprint(one, "finetuned-filtered") != config_fingerprint(other, "finetuned-filtered")


def test_steps_are_what_lies_between_neighbours_and_then_all_of_it() -> None:
    told = [(a.mode, b.mode, name) for a, b, name in steps(arms("filtered", "aligned", "finetuned", "pretrained"))]
    assert told == [
        ("pretrained", "finetuned", "fine-tuning"),
        ("finetuned", "aligned", "alignment"),
        ("aligned", "filtered", "filter on the aligned model"),
        ("pretrained", "filtered", "fine-tuning, alignment and filter"),
    ]
    of_filtered = [name for *_, name in steps(arms("finetuned-filtered", "filtered"))]
    assert of_filtered == ["alignment, both filtered"]
    assert [name for *_, name in steps(arms("baseline", "filtered", aligns=False))] == ["fine-tuning and filter"]
    assert steps(arms("baseline")) == []
