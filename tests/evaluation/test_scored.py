"""Scores of arms without a filter: those that generation would have recorded."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from medsyn.campaign.state.campaign_file import Campaign
from medsyn.config import Config
from medsyn.evaluation import read_campaign, scored
from medsyn.evaluation.read_campaign import Gathered
from tests.helpers.generated_campaign import generated_campaign


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return generated_campaign(tmp_path_factory.mktemp("scored") / "tiny")


@pytest.fixture(scope="module")
def gathered(campaign: Campaign) -> Gathered:
    return read_campaign.gather(campaign.config, campaign.directory, lambda: None)


def test_scores_are_those_that_generation_records(
    campaign: Campaign, gathered: Gathered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filtered arm's are on record: scored as if they were not, they are the same."""
    real = Config.arm
    monkeypatch.setattr(Config, "arm", lambda self, mode: dataclasses.replace(real(self, mode), filters=False))
    found = scored.score(campaign.config, campaign.directory, gathered.made, lambda: None)
    for of_modes in gathered.made.values():
        its = of_modes["filtered"]
        assert its.pictures
        for picture, line in zip(its.pictures, its.records, strict=True):
            said = found[id(picture)]
            assert (said["selector"], said["policy"]) == (line["selector"], line["policy"])
            assert said["passes"] == 1, "it was accepted"


def test_only_arms_without_a_filter_are_scored_and_no_more_than_a_fixed_number(
    campaign: Campaign, gathered: Gathered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored, "MOST", 3)
    monkeypatch.setattr(scored, "_TOGETHER", 2)
    found = scored.score(campaign.config, campaign.directory, gathered.made, lambda: None)
    first = {id(one) for of_modes in gathered.made.values() for one in of_modes["baseline"].pictures[:3]}
    assert found.keys() == first


def test_a_modality_without_scorers_has_no_scores(campaign: Campaign, gathered: Gathered) -> None:
    shutil.rmtree(campaign.directory.policy())
    assert scored.score(campaign.config, campaign.directory, gathered.made, lambda: None) == {}
