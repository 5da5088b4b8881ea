"""A Selector that is not shown to be better than chance chooses nothing, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.config import Config, validate
from medsyn.errors import InputError
from medsyn.generation.evidence import doubts, require_evidence
from medsyn.models.scores import Card, Evidence, Interval

CT = Interval(value=0.52, low=0.41, high=0.63, n=38)
ALL = Interval(value=0.81, low=0.72, high=0.9, n=150)
UNKNOWN = Interval(value=0.9, n=3)


def config(least: float | None = 0.5) -> Config:
    return validate({"selector": {"require_auroc": least}}, "test")


@pytest.fixture
def selector(tmp_path: Path) -> Any:
    def save(all_together: Interval, **by_modality: Interval) -> Path:
        card = Card(modalities=["CT", "MRI"], evidence=Evidence(auroc=all_together, by_modality=by_modality))
        disk.write_json(tmp_path / "config.json", {"card": card.model_dump()})
        return tmp_path

    return save


@pytest.mark.parametrize(
    ("by_modality", "modality"),
    [
        ({"CT": ALL, "MRI": CT}, "CT"),
        ({"CT": ALL, "MRI": CT}, "Chest CT"),
        ({"MRI": CT}, "CT"),
        ({"CT": UNKNOWN}, "CT"),
    ],
)
def test_the_modalitys_evidence_counts_or_where_it_has_too_little_that_of_all(
    selector: Any, by_modality: dict[str, Interval], modality: str
) -> None:
    require_evidence(config(), selector(ALL, **by_modality), modality)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            CT,
            r"its AUROC on held-out ratings of CT is 0.52, 95 % interval 0.41 to 0.63, from 38 groups of images: ",
        ),
        (Interval(value=0.7, low=0.5, high=0.9, n=9), r"not shown to be above 0.5 \(selector.require_auroc\)"),
    ],
)
def test_what_is_not_shown_to_be_better_than_chance_is_refused_with_what_to_do(
    selector: Any, found: Interval, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        require_evidence(config(), selector(ALL, CT=found), "CT")
    for way_out in ("more ratings of CT", "selector.require_auroc=null", "generation.modes=[baseline]"):
        assert way_out in str(caught.value)


def test_nothing_known_is_no_evidence(selector: Any) -> None:
    with pytest.raises(InputError, match="too few held-out ratings of all modalities together"):
        require_evidence(config(), selector(UNKNOWN), "CT")


def test_whoever_asks_for_more_or_for_nothing_gets_it(selector: Any) -> None:
    with pytest.raises(InputError, match=r"not shown to be above 0.8"):
        require_evidence(config(0.8), selector(ALL), "CT")
    require_evidence(config(None), selector(UNKNOWN), "CT")


def test_what_makes_scores_doubtful_is_said(tmp_path: Path) -> None:
    card = Card(evidence=Evidence(auroc=ALL), sampling={"guidance_scale": [9.0], "scheduler": ["dpm"]})
    disk.write_json(tmp_path / "config.json", {"card": card.model_dump()})
    assert doubts(config(), tmp_path, "CT") == [
        "has only seen generated images that were sampled otherwise: guidance_scale 7.5 (seen: 9.0)"
    ]
    assert len(doubts(config(0.8), tmp_path, "CT")) == 2


def test_a_scorer_without_a_card_is_told_to_be_trained_again(tmp_path: Path) -> None:
    disk.write_json(tmp_path / "config.json", {"kind": "Selector"})
    with pytest.raises(InputError, match="is no scorer of this version"):
        require_evidence(config(), tmp_path, "CT")
