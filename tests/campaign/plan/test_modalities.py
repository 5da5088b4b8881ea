"""`data.modalities: null`: a campaign has the modalities that its table has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.plan import inputs, prepare
from medsyn.campaign.state import campaign_file
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.config import Config
from medsyn.errors import InputProblems
from medsyn.stage import CampaignDirectory
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial

ALL = ["OCT", "CT", "X-Ray", "MRI", "Fundus"]


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(inputs, "_check_images", lambda data, tables, progress: [])
    return Trial(tmp_path)


def own(trial: Trial, **overrides: Any) -> Config:
    return trial.config(data__modalities=None, **overrides)


def said(config: Config, severity: str = "error") -> list[str]:
    return [str(problem) for problem in inputs.check(config).problems if problem.severity == severity]


def test_the_table_says_which_they_are_in_the_order_of_the_five(trial: Trial) -> None:
    checked = inputs.check(own(trial))
    assert checked.errors == []
    assert checked.config.data.modalities == ["OCT", "CT"], "the table has CT first"
    assert [planned.task.name for planned in checked.plan.by_stage["finetune"]] == ["oct", "ct"]
    assert inputs.resolve(own(trial)).data.modalities == ["OCT", "CT"]


def unchanged(config: Config) -> Campaign | None:
    return prepare.unchanged(config, campaign_file.read_record(CampaignDirectory(config.campaign.path)))


def test_a_campaign_is_prepared_with_them_and_found_unchanged(trial: Trial) -> None:
    campaign = trial.prepare_config(own(trial))
    assert campaign.config.data.modalities == ["OCT", "CT"]
    assert configuration.load(CampaignDirectory(trial.root).config, environment={}).data.modalities == ["OCT", "CT"]
    assert unchanged(own(trial)) is not None
    named = trial.config(data__modalities=["OCT", "CT"])
    assert unchanged(named) is not None, "naming the same ones is no change"


def test_another_spelling_and_another_column_are_read_as_everywhere(trial: Trial) -> None:
    table = trial.data / "metadata.csv"
    table.write_text(table.read_text().replace(",modality\n", ",modal\n").replace(",CT\n", ",chest CT\n"))
    checked = inputs.check(own(trial, data__modality_column="modal"))
    assert (checked.errors, checked.config.data.modalities) == ([], ["OCT", "CT"])


def test_a_row_of_a_further_one_is_a_changed_table(trial: Trial) -> None:
    def its() -> Config:
        return own(trial, training__stage=1, generation__quality_threshold=0.5)

    campaign = trial.prepare_config(its())
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("ct-0.png,MRI: a finding,MRI\n")
    assert unchanged(its()) is None
    assert trial.prepare_config(its()).config.data.modalities == ["OCT", "CT", "MRI"]
    disk.write_json(campaign.directory.work("finetune", "ct") / "made.json", {})
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("ct-0.png,Fundus: a finding,Fundus\n")
    with pytest.raises(InputProblems) as caught:
        trial.prepare_config(its())
    assert "data.table: has changed, but this campaign has results of finetune" in str(caught.value)


@pytest.mark.parametrize("content", ["", "path,Text,modality\n", "path;Text;modality\na;b;c\n", None])
def test_a_table_that_cannot_be_read_is_told_once_and_as_before(trial: Trial, content: str | None) -> None:
    table = trial.data / "metadata.csv"
    table.unlink() if content is None else table.write_text(content)
    told = said(own(trial))
    assert told == said(trial.config(data__modalities=ALL))
    assert len([line for line in told if "metadata.csv" in line]) == 1
    inputs.resolve(own(trial))


def test_prompts_of_other_modalities_are_told_unless_the_user_chose_them_away(trial: Trial) -> None:
    with (trial.data / "prompts.csv").open("a") as stream:
        stream.write("MRI: wanted,MRI\nMRI: wanted too,MRI\n")
    warning = "2 prompts are left out: the data set has no image of their modalities"
    assert any(warning in line for line in said(own(trial), "warning"))
    assert said(own(trial)) == []
    assert not any("left out" in line for line in said(trial.config(), "warning"))


def test_one_prompt_needs_no_prefix_where_the_table_has_one_modality(trial: Trial) -> None:
    table = trial.data / "metadata.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "OCT" not in line))
    (trial.data / "prompts.csv").unlink()
    assert said(own(trial, data__base_prompt="a nodule")) == []
    assert trial.prepare_config(own(trial)).config.data.modalities == ["CT"], "its captions are the prompts"


def test_phantoms_are_of_all_five_so_that_the_embedded_default_is_what_it_was() -> None:
    tiny = configuration.load(ROOT / "configs" / "tiny.yaml", environment={})
    assert tiny.data.modalities == Config().data.modalities == ALL
    named = configuration.load(ROOT / "configs" / "tiny.yaml", [f"data.modalities={ALL}"], environment={})
    assert named == tiny
    own_table = configuration.load(ROOT / "configs" / "tiny.yaml", ["data.table=metadata.csv"], environment={})
    assert own_table.model_dump()["data"]["modalities"] is None


@pytest.mark.parametrize("table", ["phantoms", "metadata.csv"])
def test_a_saved_configuration_reads_back_as_it_was(tmp_path: Path, table: str) -> None:
    config = configuration.validate({"data": {"table": table}}, "test")
    path = tmp_path / "config.yaml"
    path.write_text(configuration.save(config))
    assert configuration.load(path, environment={}) == config
    assert Config.model_validate(config.model_dump()) == config


def test_no_modality_at_all_is_refused(trial: Trial) -> None:
    with pytest.raises(InputProblems) as caught:
        trial.config(data__modalities=[])
    assert "data.modalities: list should have at least 1 item" in str(caught.value)


# Parts of the body --------------------------------------------------------------------------------------------------

SIX = ["OCT", "Fundus", "Chest X-Ray", "Chest CT", "Brain MRI", "Breast MRI"]


def test_six_kinds_of_phantoms_are_six_models_policies_and_shards(tmp_path: Path) -> None:
    listed = "data.modalities=[oct, fundus, CXR, Chest CT, brain_mri, MRI breast]"
    config = configuration.load(ROOT / "configs/tiny.yaml", [listed, f"campaign.dir={tmp_path / 'c'}"], environment={})
    checked = inputs.check(config)
    assert checked.config.data.modalities == SIX
    for stage in ("finetune", "rlhf-stage2"):
        assert [planned.task.modality for planned in checked.plan.by_stage[stage]] == SIX
    assert list(checked.plan.shards) == SIX
    assert checked.plan.find("finetune", "chest-x-ray").task.modality == "Chest X-Ray"
    each = config.data.phantoms.images_per_kind
    assert checked.counts["images"] == checked.counts["rated images"] == dict.fromkeys(SIX, each)


def by_part(trial: Trial, *parts: str) -> None:
    """Tables with images, ratings and prompts of CT, each of a part of the body or of none."""
    images, ratings, asked = ["path,Text,modality"], ["image_path,rating,modality,expert_level,prompt"], ["prompt"]
    for part in parts:
        for number in range(4):
            file, text = f"ct-{number}.png", f"{part} CT: finding {number}".strip()
            images.append(f"{file},{text},CT")
            ratings.append(f"{file},{1 + 2 * (number % 2)},CT,3,{text}")
        asked.append(f"{part} CT: wanted".strip())
    for name, lines in (("metadata", images), ("ratings", ratings), ("prompts", asked)):
        (trial.data / f"{name}.csv").write_text("\n".join(lines) + "\n")


def test_rows_of_all_three_tables_belong_to_the_most_specific_and_the_rest_to_the_plain_one(trial: Trial) -> None:
    by_part(trial, "Chest", "Liver", "")
    checked = inputs.check(trial.config(data__modalities=["Chest CT", "CT"]))
    assert checked.errors == []
    assert checked.counts["images"] == checked.counts["ratings"] == {"Chest CT": 4, "CT": 8}
    assert checked.prompts.counts == {"Chest CT": 1, "CT": 2}


def test_what_belongs_to_none_is_counted_for_each_table(trial: Trial) -> None:
    by_part(trial, "Chest", "Liver", "")
    config = trial.config(data__modalities=["Chest CT"])
    assert inputs.check(config).errors == []
    told = said(config, "warning")
    for table, rows in (("metadata", "(4 rows: 10"), ("ratings", "(4 rows: 10"), ("prompts", "(1 row)")):
        of_it = [line for line in told if f"{table}.csv" in line and "left out" in line]
        assert len(of_it) == 2 and any("names no part of the body" in line and rows in line for line in of_it)
        assert any("is of Liver CT, which is not in data.modalities" in line for line in of_it)


def test_the_lists_of_a_campaign_say_the_part_of_the_body(trial: Trial) -> None:
    by_part(trial, "Chest", "")
    trial.prepare(data__modalities=["Chest CT", "CT"])
    lists = trial.root / "inputs" / "prompts"
    (row,) = disk.read_jsonl(lists / "chest-ct.jsonl")
    assert row["modality"] == "Chest CT" and row["id"].startswith("chest-ct-")
    again = inputs.check(inputs.of_directory(trial.root))
    assert again.prompts.counts == {"Chest CT": 1, "CT": 1}, "read once more"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("CT: chest", "start it with one, as in 'Chest CT: chest'"), ("PET: x", "as in 'Chest CT: PET: x'")],
)
def test_one_prompt_that_names_no_part_of_the_body(trial: Trial, prompt: str, reason: str) -> None:
    by_part(trial, "Chest", "Liver")
    (trial.data / "prompts.csv").unlink()
    config = trial.config(data__modalities=["Chest CT", "Liver CT"], data__base_prompt=prompt)
    assert any(reason in line for line in said(config))
