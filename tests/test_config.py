from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from medsyn import config, specification
from medsyn.config import Config
from medsyn.disk import fingerprint
from medsyn.errors import InputError, InputProblems
from tests.helpers.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "campaign.yaml"
    path.write_text(text)
    return path


def problems_of(path: Path, *overrides: str) -> dict[str | None, str]:
    with pytest.raises(InputProblems) as caught:
        config.load(path, overrides, environment={})
    return {problem.key: problem.reason for problem in caught.value.problems}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert config.load(path, environment={}).campaign.name == path.stem


def test_the_tiny_file_explains_every_key_there_is() -> None:
    tree = config.yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    assert {key for key, _ in config.flatten(tree)} == {key for key, _ in config.flatten(Config().model_dump())}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_saved_configuration_reads_back_equal(path: Path, tmp_path: Path) -> None:
    original = config.load(path, environment={})
    assert config.load(write(tmp_path, config.save(original)), environment={}) == original


def test_all_problems_of_a_file_at_once_each_with_its_key(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {tabel: x, resolution: 100}\nfinetune: {learning_rate: fast}\ngeneraton: {}\n")
    found = problems_of(path)
    assert set(found) == {"data.tabel", "data.resolution", "finetune.learning_rate", "generaton"}
    assert "did you mean data.table?" in found["data.tabel"]
    assert "multiple of 8" in found["data.resolution"]


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    loaded = config.load(
        write(tmp_path, "finetune: {learning_rate: 1e-5}\n"), ["training.stage1.learning_rate=2e-4"], {}
    )
    assert loaded.finetune.learning_rate == 1e-5
    assert loaded.training.stage1.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("generation.batch_sze=3", "generation.batch_sze"),
        ("generation.batch_size=0", "generation.batch_size"),
        ("generation.batch_size=three", "generation.batch_size"),
        ("generation.batch_size=true", "generation.batch_size"),
        ("generation.quality_threshold=1.5", "generation.quality_threshold"),
        ("generation.quality_threshold=automatic", "generation.quality_threshold"),
        ("generation.quality_threshold=true", "generation.quality_threshold"),
        ("generation=3", "generation"),
        ("campaign.name=../escape", "campaign.name"),
        ("generation.num_candidates=99", "generation"),
        ("generation.num_inference_steps=0", "generation.num_inference_steps"),
        ("generation.guidance_interval=[0.5, 0.2]", "generation"),
        ("generation.guidance_interval=[0.5]", "generation.guidance_interval"),
        ("generation.output=jpeg", "generation.output"),
        ("data.modalities=[OCT, OCT]", "data"),
        ("data.modalities=[Ultrasound]", "data.modalities.0"),
        ("selector.patch_size=7", "selector"),
        ("align.method=ppo", "align.method"),
        ("align.train_batch_size=1", "align.train_batch_size"),
        ("align.real_share=0.97", "align"),
        ("align.lora.alpha=8", "align.lora"),
        ("training.stage1.train_selector=false", None),
        ("training.checkpoints.save_dir=policy", None),
        ("generation.guidance_scale=.inf", "generation.guidance_scale"),
        ("nonsense", None),
    ],
)
def test_bad_overrides_name_their_key(tmp_path: Path, override: str, key: str | None) -> None:
    assert key in problems_of(write(tmp_path, "campaign: {name: a}\n"), override)


def test_several_bad_overrides_are_told_together(tmp_path: Path) -> None:
    assert set(problems_of(write(tmp_path, ""), "a.b=1", "c.d=2")) == {"a.b", "c.d"}


def test_later_wins_file_environment_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {resolution: 64}\ngeneration: {img_num: 2}\n")
    environment = {"RESOLUTION": "128", "NUM_IMAGES": "4", "USE_8BIT_ADAM": "1"}
    loaded = config.load(path, ["generation.img_num=5"], environment)
    assert (loaded.data.resolution, loaded.generation.img_num, loaded.finetune.use_8bit_adam) == (128, 5, True)


@pytest.mark.parametrize("key", ["finetune.max_train_steps", "training.max_epochs", "generation.batch_size"])
@pytest.mark.parametrize("zeros", [10, 400])
def test_a_number_beyond_all_measure_is_refused(tmp_path: Path, key: str, zeros: int) -> None:
    with pytest.raises(InputProblems, match=rf"{key}: must be at most 1,000,000,000, got 1000"):
        config.load(write(tmp_path, ""), [f"{key}=1{'0' * zeros}", "campaign.seed=9223372036854775807"], {})


def test_one_override_needs_no_list(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, ""), "generation.img_num=5", {}).generation.img_num == 5


def test_environment_text_stays_text(tmp_path: Path) -> None:
    loaded = config.load(
        write(tmp_path, ""), [], {"BASE_PROMPT": "Chest X-ray: normal lung fields", "DATASET_NAME": "12"}
    )
    assert loaded.data.base_prompt == "Chest X-ray: normal lung fields"
    assert loaded.data.table == "12"


def test_a_bad_environment_value_is_an_error_not_a_default(tmp_path: Path) -> None:
    with pytest.raises(InputProblems, match="resolution"):
        config.load(write(tmp_path, ""), [], {"RESOLUTION": "large"})


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "a: [1\n", "a: &x [*x]\n"])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises((InputError, InputProblems), match=r"campaign\.yaml"):
        config.load(write(tmp_path, text), environment={})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml.*no such configuration"):
        config.load(tmp_path / "absent.yaml", environment={})


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = write(tmp_path, f"data: {{table: !!python/object/apply:os.system ['touch {tmp_path}/ran']}}\n")
    with pytest.raises(InputError):
        config.load(path, environment={})
    assert not (tmp_path / "ran").exists()


def test_section_fingerprints_see_their_sections_only() -> None:
    base = Config()
    moved = config.validate({"cluster": {"max_parallel": 7}}, "test")
    trained = config.validate({"finetune": {"max_train_steps": 7}}, "test")
    keys = ("campaign.seed", "data", "finetune")
    assert base.section_fingerprint(*keys) == moved.section_fingerprint(*keys)
    assert base.section_fingerprint(*keys) != trained.section_fingerprint(*keys)
    assert list(config.changes(base.model_dump(), trained)) == ["finetune.max_train_steps"]


def test_a_compiled_unet_is_the_images_affair_and_no_stages() -> None:
    """It is in the environment that images are made in, which is compared; weights do not depend on it."""
    base, compiled = Config(), config.validate({"device": {"compile": True}}, "test")
    assert base.section_fingerprint("device") == compiled.section_fingerprint("device")
    assert base.section_fingerprint("device.compile") != compiled.section_fingerprint("device.compile")


@pytest.mark.parametrize("shortcut", [{"fast": True}, {"deep_cache_every": 2}, {"text_attention_until": 0.5}])
def test_a_compiled_unet_leaves_nothing_out(shortcut: dict[str, Any]) -> None:
    with pytest.raises(InputProblems, match=r"device.compile compiles all of the UNet, and generation.fast, .* choose"):
        config.validate({"device": {"compile": True}, "generation": shortcut}, "test")
    off = {"fast": True, "deep_cache_every": 1, "text_attention_until": 1.0}
    config.validate({"device": {"compile": True}, "generation": off}, "test")


def sources_of(path: Path, overrides: list[str], environment: dict[str, str]) -> dict[str | None, str]:
    with pytest.raises(InputProblems) as caught:
        config.load(path, overrides, environment)
    return {problem.key: problem.source for problem in caught.value.problems}


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.validate({"campaign": {"dir": "~/runs/a"}}, "test").campaign.path == tmp_path / "runs" / "a"


def test_the_home_of_nobody_is_an_error(tmp_path: Path) -> None:
    assert "home" in problems_of(write(tmp_path, ""), "campaign.dir=~no-such-user-here/a")["campaign.dir"]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("campaign.name", "2024", "2024"),
        ("campaign.name", "1e5", "1e5"),
        ("campaign.name", "null", "null"),
        ("data.root", "2024-13-45", "2024-13-45"),
        ("data.root", "null", None),
        ("data.root", "", None),
        ("data.base_prompt", "OCT: healthy retina", "OCT: healthy retina"),
        ("data.base_prompt", "[a, b", "[a, b"),
        ("data.base_prompt", " ", None),
        ("model_paths.stable_diffusion", "a=b", "a=b"),
        ("generation.negative_prompt", "blurry: yes", "blurry: yes"),
        ("generation.negative_prompt", "", ""),
        ("training.checkpoints.save_dir", "007", "007"),
    ],
)
def test_text_is_taken_verbatim_and_survives_saving(tmp_path: Path, key: str, text: str, value: str | None) -> None:
    loaded = config.load(write(tmp_path, "data: {root: /x, base_prompt: old}\n"), [f"{key}={text}"], {})
    assert dict(config.flatten(loaded.model_dump()))[key] == value
    assert config.load(write(tmp_path, config.save(loaded)), environment={}) == loaded


@pytest.mark.parametrize("blank", ["''", "'  '", "null"])
def test_a_blank_base_prompt_in_the_file_is_none(tmp_path: Path, blank: str) -> None:
    assert config.load(write(tmp_path, f"data: {{base_prompt: {blank}}}\n"), environment={}).data.base_prompt is None


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_bytes("data: {base_prompt: Röntgen}\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"campaign\.yaml.*UTF-8"):
        config.load(path, environment={})


@pytest.mark.parametrize("text", ["[" * 5000, "".join(" " * depth + "a:\n" for depth in range(1500))])
def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"campaign\.yaml: is nested too deeply"):
        config.load(write(tmp_path, text), environment={})


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("TRUE", True), ("False", False)])
def test_environment_switches(tmp_path: Path, text: str, value: bool) -> None:
    assert config.load(write(tmp_path, ""), [], {"USE_EMA": text}).finetune.use_ema is value


@pytest.mark.parametrize("name", ["USE_8BIT_ADAM", "USE_EMA", "ENABLE_XFORMERS"])
@pytest.mark.parametrize("text", ["2", "yes", "off", "null", "[1"])
def test_any_other_switch_is_an_error_naming_its_variable(tmp_path: Path, name: str, text: str) -> None:
    found = sources_of(write(tmp_path, ""), [], {name: text})
    assert found == {specification.ENVIRONMENT[name]: f"environment variable {name}"}


def test_a_problem_names_where_its_value_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "finetune: {ema_decay: 2}\n")
    overrides = ["data.modalities=[CT, PET]", "generation.num_candidates=99", "finetune.train_batch_size=0"]
    assert sources_of(path, overrides, {"RESOLUTION": "large", "TRAIN_BATCH_SIZE": "8"}) == {
        "finetune.ema_decay": str(path),
        "data.modalities.1": "command line",
        "data.resolution": "environment variable RESOLUTION",
        "finetune.train_batch_size": "command line",
        "generation": "command line",
    }


def test_a_section_at_fault_in_the_file_is_not_blamed_on_an_unrelated_override(tmp_path: Path) -> None:
    path = write(tmp_path, "generation: {num_candidates: 99}\n")
    assert sources_of(path, ["generation.img_num=2"], {}) == {"generation": str(path)}


def test_problems_of_the_file_and_of_overrides_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {tabel: x}\n")
    overrides = ["a.b=1", "nonsense", "data.resolution=[1"]
    assert set(problems_of(path, *overrides)) == {"data.tabel", "a.b", None, "data.resolution"}


@pytest.mark.parametrize(
    ("text", "line"),
    [("data: {}\ncampaign: {}\ndata: {}\n", 3), ("data:\n  strict: true\n  'strict': false\n", 3)],
)
def test_a_key_given_twice_is_an_error_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(InputError, match=rf"campaign\.yaml, line {line}.*given twice"):
        config.load(write(tmp_path, text), environment={})


def test_aliases_may_be_merged_and_an_override_changes_one_side_only(tmp_path: Path) -> None:
    path = write(tmp_path, "selector: &s {num_layers: 2}\npolicy_model: *s\n")
    loaded = config.load(path, ["selector.num_layers=3"], {})
    assert (loaded.selector.num_layers, loaded.policy_model.num_layers) == (3, 2)
    merged = write(tmp_path, "selector: &s {num_layers: 2}\npolicy_model: {<<: *s, num_layers: 4}\n")
    assert config.load(merged, environment={}).policy_model.num_layers == 4


def test_an_impossible_date_is_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"campaign\.yaml"):
        config.load(write(tmp_path, "campaign: {name: 2024-13-45}\n"), environment={})


def test_modalities_in_any_usual_spelling_are_stored_in_one(tmp_path: Path) -> None:
    read = config.load(write(tmp_path, "data: {modalities: [x-ray, brain mri, MRI, Fundus]}\n"), environment={})
    assert read.data.modalities == ["X-Ray", "Brain MRI", "MRI", "Fundus"]


@pytest.mark.parametrize(
    ("names", "key", "reason"),
    [
        ("[BrainMRI, Brain MR]", "data", "lists a modality twice: Brain MRI"),
        (
            "[Toe MRI]",
            "data.modalities.0",
            "there is no such part of the body: known are Head, Brain, Neck, .*'Toe MRI'",
        ),
        ("[Brian MRI]", "data.modalities.0", r"did you mean Brain MRI\?"),
        ("[PET]", "data.modalities.0", "must be OCT, CT, X-Ray, MRI, Fundus, or a part of the body and one of these"),
        ("[left breast MRI]", "data.modalities.0", "one part of the body and a modality"),
        ("[chest abdomen CT]", "data.modalities.0", "one part of the body and a modality"),
    ],
)
def test_what_is_no_modality_says_what_can_be(tmp_path: Path, names: str, key: str, reason: str) -> None:
    assert re.search(reason, problems_of(write(tmp_path, f"data: {{modalities: {names}}}\n"))[key])


def test_steps_that_a_sampler_cannot_make_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputProblems, match="lcm takes 1 to 50 steps, not 60"):
        config.load(write(tmp_path, "generation: {scheduler: lcm, num_inference_steps: 60}\n"), [], {})


def test_a_value_that_is_no_unicode_text_is_refused_by_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("campaign: {name: x}")
    with pytest.raises(InputProblems) as caught:
        config.load(path, ["campaign.dir=/tmp/\udcff"], {"BASE_PROMPT": "CT: \udcff"})
    assert [(one.source, one.key) for one in caught.value.problems] == [
        ("environment variable BASE_PROMPT", "data.base_prompt"),
        ("command line", "campaign.dir"),
    ]


def test_a_misspelt_choice_is_suggested(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {modalities: [xrai]}\ngeneration: {scheduler: eulr}")
    with pytest.raises(InputProblems, match=r"did you mean X-Ray\?(.|\n)*did you mean euler\?"):
        config.load(path, environment={})


def test_a_long_value_is_shown_short(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"campaign: {{name: {'x' * 10**6}}}")
    with pytest.raises(InputProblems) as caught:
        config.load(path, environment={})
    assert len(str(caught.value)) < 500


def test_an_evaluation_without_what_came_later_is_the_same_as_before_it_came() -> None:
    section = {"max_images": 1000, "kid_subsets": 50, "kid_subset_size": 100, "sheet_columns": 8}
    before = fingerprint({f"evaluation.{key}": value for key, value in section.items()})
    without = config.validate({"evaluation": {"copies": False}}, "test")
    assert without.section_fingerprint("evaluation") == before
    assert Config().section_fingerprint("evaluation") != before
