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
    monkeypatch.setattr(inputs, "_check_images", lambda config, rows, progress, tokens: [])
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
    campaign = trial.prepare_config(own(trial, training__stage=1))
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("ct-0.png,MRI: a finding,MRI\n")
    assert unchanged(own(trial, training__stage=1)) is None
    assert trial.prepare_config(own(trial, training__stage=1)).config.data.modalities == ["OCT", "CT", "MRI"]
    disk.write_json(campaign.directory.work("finetune", "ct") / "made.json", {})
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("ct-0.png,Fundus: a finding,Fundus\n")
    with pytest.raises(InputProblems) as caught:
        trial.prepare_config(own(trial, training__stage=1))
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
