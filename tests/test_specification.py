"""What the specification's authors have in their files and shells works, or is told what does it here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsyn import config, specification
from medsyn.errors import InputProblems, Problem
from tests.docs.pages import blocks, text
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs" / "from-the-specification.md"
FIELDS = dict(config.flatten(config.Config().model_dump()))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The configuration file of the page."""
    (block,) = (block for block in blocks(PAGE) if block.language == "yaml")
    (tmp_path / "config.yaml").write_text(block.text)
    return tmp_path / "config.yaml"


def test_their_configuration_is_read_key_by_key(theirs: Path) -> None:
    told: list[Problem] = []
    loaded = config.load(theirs, environment={}, tell=told.extend)
    section = loaded.generation
    assert (section.num_inference_steps, section.guidance_scale, section.max_attempts) == (50, 7.5, 10)
    assert (loaded.data.resolution, loaded.finetune.learning_rate, loaded.finetune.train_batch_size) == (256, 1e-5, 4)
    assert (loaded.policy_model.hidden_dim, loaded.selector.num_heads) == (768, 12)
    assert (loaded.training.stage2.selector_threshold, section.quality_threshold) == (0.2, 0.6)
    given = dict(config.flatten(config.read_tree(theirs)))
    foreign = {key for key in given if key not in FIELDS}
    said = [problem.key for problem in told if problem.key]
    assert foreign == {key for key in given if any(f"{key}.".startswith(f"{name}.") for name in said)}
    assert {problem.severity for problem in told} == {"warning"}
    named = {problem.key: problem.reason for problem in told}
    assert named["synthetic_system.image_size"] == "is read as data.resolution"
    assert named["data.num_workers"].startswith("is not used: images are read once")


def test_a_key_that_is_given_under_both_names_is_refused(theirs: Path) -> None:
    theirs.write_text(theirs.read_text().replace("{num_candidates: 3,", "{num_candidates: 3, guidance_scale: 2,"))
    with pytest.raises(InputProblems, match="synthetic_system: is not a section here"):
        config.load(theirs, environment={})


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("synthetic_system.guidance_scale=3", "is generation.guidance_scale here"),
        ("model_paths.clip=x", "there is nothing to set: the text encoder is that of model_paths.stable_diffusion"),
        ("synthetic_system=3", "is not a section here; docs/from-the-specification.md says what its keys are"),
    ],
)
def test_an_override_of_theirs_is_told_its_name_here(override: str, told: str) -> None:
    with pytest.raises(InputProblems) as caught:
        config.load(ROOT / "configs" / "tiny.yaml", [override], {})
    assert [problem.reason for problem in caught.value.problems] == [told]


def test_a_section_of_theirs_that_is_no_section_is_told(theirs: Path) -> None:
    theirs.write_text("synthetic_system: 3\ndata: 4\n")
    with pytest.raises(InputProblems) as caught:
        config.load(theirs, environment={})
    assert {problem.key for problem in caught.value.problems} == {"synthetic_system", "data"}


def test_their_variables_are_told_where_they_set_nothing(tmp_path: Path) -> None:
    told: list[Problem] = []
    given = dict.fromkeys(specification.OTHER_VARIABLES, "1") | {"NUM_IMAGES": "3", "DEVICE": ""}
    loaded = config.load(ROOT / "configs" / "tiny.yaml", environment=given, tell=told.extend)
    assert loaded.generation.img_num == 3 and loaded.campaign.dir == ""
    asked = [f"environment variable {name}" for name in specification.OTHER_VARIABLES if name != "DEVICE"]
    assert [problem.source for problem in told] == asked


def test_every_name_here_is_a_key() -> None:
    for name in (*specification.ENVIRONMENT.values(), *specification.RENAMED.values()):
        assert name in FIELDS, name
    assert not FIELDS.keys() & {*specification.RENAMED, *specification.OTHER_KEYS}


def test_the_page_has_the_tables() -> None:
    for of in specification.markdown().split("\n\n"):
        assert of in text(PAGE)


def test_nothing_is_left_of_a_section_that_is_all_theirs() -> None:
    tree: dict[str, Any] = {"data": {"num_workers": 4}, "synthetic_system": {"training": {"batch_size": 2}}}
    assert [key for key, _ in specification.translate(tree)] == [
        "synthetic_system.training.batch_size",
        "data.num_workers",
    ]
    assert tree == {"finetune": {"train_batch_size": 2}}
