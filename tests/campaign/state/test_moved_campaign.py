"""A campaign's directory that is somewhere else than where it was prepared."""

from __future__ import annotations

import shutil
from pathlib import Path

from medsyn import disk
from medsyn.campaign.state import campaign_file
from tests.helpers.trial import Trial


def test_paths_into_the_directory_follow_it_and_others_stay(trial: Trial, tmp_path: Path) -> None:
    before = trial.prepare()
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    trial.root.rename(moved)
    after = campaign_file.open_campaign(moved)
    assert after.fingerprints == before.fingerprints and after.plan == before.plan
    assert after.config.campaign.path == moved == after.directory.root
    assert after.config.data.prompts == str(moved / "inputs" / "prompts")
    assert after.inputs["prompts"].path == str(moved / "inputs" / "prompts" / "index.json")
    assert after.config.data.table == before.config.data.table and after.inputs["table"] == before.inputs["table"]
    assert after.config.data.ratings_file == before.config.data.ratings_file


def test_phantoms_and_their_ratings_follow_it(trial: Trial, tmp_path: Path) -> None:
    small = {"data__table": "phantoms", "data__phantoms": {"images_per_kind": 12, "image_size": 64}}
    trial.prepare(**small)
    shutil.copytree(trial.root, tmp_path / "copy")
    data = campaign_file.open_campaign(tmp_path / "copy").config.data
    assert data.table == str(tmp_path / "copy" / "phantoms" / "metadata.csv")
    assert data.ratings_file == str(tmp_path / "copy" / "phantoms" / "ratings.csv")


def test_a_folder_whose_name_only_begins_like_it_is_not_in_it(trial: Trial, tmp_path: Path) -> None:
    data = tmp_path / "campaign-2"
    trial.data.rename(data)
    trial.data = data
    trial.prepare()
    shutil.copytree(trial.root, tmp_path / "copy")
    assert campaign_file.open_campaign(tmp_path / "copy").config.data.table == str(data / "metadata.csv")


def test_submitting_it_again_where_it_is_now_keeps_what_was_made(trial: Trial, tmp_path: Path) -> None:
    before = trial.prepare()
    trial.root.rename(tmp_path / "moved")
    trial.root = tmp_path / "moved"
    disk.write_json(tmp_path / "moved" / "work" / "finetune" / "ct" / "made.json", 1)
    after = trial.prepare()
    assert after.fingerprints == before.fingerprints and after.directory.root == tmp_path / "moved"
    assert disk.read_json(after.directory.campaign_file)["config"]["campaign"]["dir"] == str(trial.root)
