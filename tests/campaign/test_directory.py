"""A campaign's directory in the place of its configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medsyn import config as configuration
from medsyn import disk
from medsyn.__main__ import COMMANDS
from medsyn.campaign.local import scheduler
from medsyn.campaign.plan import inputs, prepare
from medsyn.campaign.state import campaign_file
from medsyn.cli import app, calibrate
from medsyn.cli import campaign as campaign_commands
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.stage import CampaignDirectory
from tests.helpers.trial import Trial


def call(*words: str | Path) -> int:
    return app.dispatch("medsyn", COMMANDS, [str(word) for word in words])


def is_unchanged(config: Config) -> bool:
    """Whether submitting it would have nothing to check and nothing to write."""
    return prepare.unchanged(config, campaign_file.read_record(CampaignDirectory(config.campaign.path))) is not None


def snapshot(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


GIVEN: dict[str, dict[str, Any]] = {
    "tables": {},
    "another prompt list": {"data__prompts": "wanted.txt"},
    "one prompt": {"data__base_prompt": "CT: a nodule", "data__prompts": None},
    "ratings elsewhere": {"data__ratings_file": "more/ratings.csv", "data__root": "."},
    "captions": {"data__table": "more/metadata.csv", "data__ratings_file": "ratings.csv", "data__root": "."},
    "a card": {"generation__batch_size": "auto", "cluster__gpu_memory_gib": 12.0, "device__use_cuda": True},
    "a site": {"cluster__site": "site.yaml"},
    "phantoms": {
        "data__table": "phantoms",
        "data__phantoms": {"images_per_kind": 12, "prompts_per_kind": 3, "image_size": 64},
    },
}


@pytest.fixture
def beside(trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """The trial, with further tables, used from the folder that has them."""
    (trial.data / "wanted.txt").write_text("CT: one\nOCT: two\n")
    (trial.data / "site.yaml").write_text("partition: cpu\n")
    (trial.data / "more").mkdir()
    for name in ("ratings.csv", "metadata.csv"):
        shutil.copy(trial.data / name, trial.data / "more")
    monkeypatch.chdir(trial.data)
    return trial


@pytest.mark.parametrize("given", GIVEN)
def test_it_stands_for_what_was_given_from_any_place(
    beside: Trial, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = beside.config(**GIVEN[given])
    campaign = beside.prepare_config(config)
    monkeypatch.chdir(tmp_path)
    again = inputs.of_directory(Path("campaign"))
    assert is_unchanged(again)
    assert inputs.resolve(again) == campaign.config
    for key in ("ratings_file", "prompts", "base_prompt"):  # a default that was filled in is a default again
        assert (getattr(config.data, key) is None) == (getattr(again.data, key) is None), key
    assert (again.data.table == "phantoms") == (config.data.table == "phantoms")


@pytest.mark.parametrize("place", ["moved", "copied", "linked", "named otherwise"])
@pytest.mark.parametrize("given", ["tables", "phantoms"])
def test_it_may_be_moved_and_copied(beside: Trial, tmp_path: Path, given: str, place: str) -> None:
    before = beside.prepare_config(beside.config(**GIVEN[given]))
    beside.work("finetune", "ct")
    other = tmp_path / "other"
    if place == "moved":
        beside.root.rename(other)
    elif place == "copied":
        shutil.copytree(beside.root, other)
    elif place == "linked":
        other.symlink_to(beside.root)
    else:
        other = beside.root / ".." / "campaign"
    again = inputs.of_directory(other)
    is_elsewhere = place in ("moved", "copied")
    assert again.campaign.path == (other if is_elsewhere else beside.root)
    assert is_unchanged(again) != is_elsewhere  # the paths on record are written anew
    after = beside.prepare_config(again)
    assert is_unchanged(inputs.of_directory(other))
    assert (after.fingerprints, after.plan) == (before.fingerprints, before.plan)
    assert campaign_file.open_campaign(other).fingerprints == before.fingerprints
    assert after.directory.done("finetune", "ct").is_file()
    if place == "copied":
        assert str(beside.root) not in (other / "campaign.json").read_text()


def test_where_the_prompt_list_is_gone_the_campaigns_own_copy_is_read(beside: Trial) -> None:
    before = beside.prepare(data__prompts="wanted.txt")
    (beside.data / "wanted.txt").unlink()
    after = beside.prepare_config(inputs.of_directory(beside.root))
    assert (after.fingerprints, after.plan) == (before.fingerprints, before.plan)


def test_overrides_come_on_top_and_what_is_made_cannot_be_changed(
    trial: Trial, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "run", lambda *_, **__: 0)
    trial.prepare(finetune__max_train_steps=7)
    trial.work("finetune", "ct")
    assert call("submit", trial.root, "--cluster", "local", "cluster.max_parallel=5", "generation.img_num=3") == 0
    config = trial.campaign().config
    assert (config.cluster.max_parallel, config.generation.img_num, config.finetune.max_train_steps) == (5, 3, 7)
    capsys.readouterr()
    assert call("submit", trial.root, "--cluster", "local", "finetune.max_train_steps=6") == 65
    said = capsys.readouterr().err
    assert (
        "configuration, finetune.max_train_steps: was 7 and is now 6, but this campaign has results of finetune" in said
    )
    assert call("submit", trial.root, "--cluster", "local", "finetune.max_train_stepz=8") == 65
    assert "did you mean finetune.max_train_steps?" in capsys.readouterr().err


def test_overriding_the_table_looks_beside_that_for_the_others(beside: Trial) -> None:
    beside.prepare()
    (beside.data / "more" / "prompts.csv").write_text("prompt,modality\nCT: another,CT\nOCT: another,OCT\n")
    more = beside.data / "more"
    config = inputs.of_directory(beside.root, [f"data.table={more / 'metadata.csv'}", f"data.root={beside.data}"])
    assert inputs.resolve(config).data.ratings_file == str(more / "ratings.csv")
    assert inputs.prompt_source(config) == more / "prompts.csv"


def test_the_environment_has_had_its_say(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.prepare()
    monkeypatch.setenv("DATASET_NAME", "elsewhere")
    monkeypatch.setenv("RESOLUTION", "128")
    assert is_unchanged(inputs.of_directory(trial.root))


def test_every_command_takes_it(
    trial: Trial, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "run", lambda *_, **__: 0)
    monkeypatch.setattr(calibrate, "measure", lambda config: calibrate.Speed(config.campaign.name, 1, 1, 1, 1, None))
    trial.prepare_short()
    for planned in trial.campaign().plan:
        trial.work(*planned.key)
    monkeypatch.chdir(trial.root.parent)
    before = snapshot(trial.root)
    root = "campaign"
    codes = {
        ("plan", root, "--cluster", "local"): "campaign trial",
        ("submit", root, "--cluster", "local"): "",
        ("resume", root, "--cluster", "local"): "",
        ("status", root): "evaluate 1",
        ("status", root, "--json"): f'"directory": "{trial.root}"',
        ("logs", root): "no task has failed",
        ("cancel", root): "nothing of this campaign is running or queued",
        ("finetune", root): "0  ct",
        ("finetune", root, "--task", "ct"): "finetune ct is already done",
        ("rlhf", root, "--stage", "1", "--task", "all"): "rlhf-stage1 all is already done",
        ("generate", root, "--task", "0"): "generate ct-00000 is already done",
        ("evaluate", root, "--task", "all"): "evaluate all is already done",
        ("calibrate", root): "device            trial",
    }
    for words, said in codes.items():
        code = call(*words)
        out, err = capsys.readouterr()
        assert (code, said in " ".join(out.split()) or said in out) == (0, True), (words, out, err)
    assert snapshot(trial.root) == before
    assert call("verify", root) == 1  # the fake stages write no images
    for table in trial.root.rglob("*.parquet"):  # nor tables
        table.unlink()
    assert call("merge", root) == 65
    config = trial.data / "campaign.yaml"
    config.write_text(configuration.save(trial.config(data__modalities=["CT"], training__stage=1)))
    assert (call("verify", config), call("merge", config)) == (1, 65)
    assert not list(trial.root.glob("*.parquet"))


@pytest.mark.parametrize("words", [("status",), ("logs",), ("cancel",), ("verify",), ("merge",)])
def test_an_override_that_can_have_no_effect_is_refused(
    trial: Trial, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    trial.prepare()
    assert call(*words, trial.root, "generation.img_num=7") == 65
    said = capsys.readouterr().err
    assert f"generation.img_num=7 has no effect here: {trial.root} has its settings, which `" in said


def test_what_is_suggested_next_for_a_directory_has_no_overrides(
    trial: Trial, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "run", lambda *_, **__: 0)
    trial.prepare()
    assert call("cancel", trial.root) == 0
    assert f"resume {trial.root} --cluster local\n" in capsys.readouterr().out


def test_what_ran_here_goes_on_here_although_there_is_a_slurm(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[bool] = []
    monkeypatch.setattr(scheduler, "run", lambda *_, **__: ran.append(True) or 0)
    monkeypatch.setattr(campaign_commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    trial.prepare()
    assert call("resume", trial.root) == 0
    assert ran == [True]


def test_a_variable_that_a_directory_leaves_unread_is_told(
    trial: Trial, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare()
    monkeypatch.setenv("NUM_IMAGES", "7")
    assert call("plan", trial.root, "--cluster", "local") == 0
    said = capsys.readouterr().err
    assert "environment variable NUM_IMAGES: is not used: " in said and "give generation.img_num=7" in said


@pytest.mark.parametrize("command", ["plan", "submit", "resume", "status", "logs", "cancel", "finetune", "verify"])
def test_a_directory_that_is_no_campaigns(trial: Trial, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert call(command, trial.data) == 65
    assert capsys.readouterr().err == (
        f"{trial.data}: this is not a campaign's directory: `medsyn submit CONFIG` creates one\n"
    )
    assert call(command, trial.data / "nothing") == 65
    assert "there is no such configuration file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "submit", "status", "finetune", "verify"])
def test_a_campaign_whose_preparation_was_killed(
    trial: Trial, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    disk.make_directory(trial.root)
    campaign_file.claim(CampaignDirectory(trial.root))
    before = snapshot(trial.root)
    assert call(command, trial.root) == 65
    said = f"{trial.root}: the preparation of this campaign was never finished: submit its configuration again\n"
    assert capsys.readouterr().err == said
    assert snapshot(trial.root) == before


def test_a_damaged_record_or_configuration_is_told(trial: Trial) -> None:
    trial.prepare()
    facts = (trial.root / "campaign.json").read_text()
    (trial.root / "campaign.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        inputs.of_directory(trial.root)
    (trial.root / "campaign.json").write_text(facts)
    (trial.root / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml: there is no such configuration file"):
        inputs.of_directory(trial.root)


def test_a_kill_between_configuration_and_record_is_gone_on_from(trial: Trial) -> None:
    """config.yaml is new, campaign.json old: the directory stands for what was last asked for."""
    trial.prepare()
    new = inputs.resolve(trial.config(generation__guidance_scale=3.0))
    (trial.root / "config.yaml").write_text(configuration.save(new))
    trial.prepare_config(inputs.of_directory(trial.root))
    assert trial.campaign().config.generation.guidance_scale == 3.0
    assert json.loads((trial.root / "campaign.json").read_text())["config"]["generation"]["guidance_scale"] == 3.0
