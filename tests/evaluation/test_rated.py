"""Ratings of the campaign's own images: what is measured, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medsyn import disk, own_ratings
from medsyn.evaluation import rated
from medsyn.rating.sessions import SESSIONS_TABLE, write_sessions
from medsyn.stage import CampaignDirectory


def rate(directory: CampaignDirectory, rows: Iterable[dict[str, Any]]) -> None:
    """Write sessions as an import does, of the images that the campaign makes."""
    facts = disk.read_json(directory.campaign_file) if directory.campaign_file.is_file() else {}
    disk.write_json(directory.campaign_file, facts | {"fingerprints": {"generate": "these"}})
    write_sessions(disk.make_directory(directory.ratings.parent) / SESSIONS_TABLE, rows)
    own_ratings.note(directory)


def row(number: int, rating: int | None, mode: str = "filtered", **facts: Any) -> dict[str, Any]:
    image = {"file": f"{mode}-{number}.png", "mode": mode, "prompt_id": f"p{number // 2}", "modality": "CT"}
    case = {"kind": "case", "item": f"case{number}", "order": number, "rating": rating, "not_sure": rating is None}
    who = {"set": "s", "rater": "A", "seconds": 3.0, "decoy": False, "source": "generated"}
    return {**who, **case, **image, **facts}


def test_a_campaign_without_ratings_of_its_present_images_has_none(tmp_path: Path) -> None:
    directory = CampaignDirectory(tmp_path)
    assert rated.measure(directory, 0) is None
    rate(directory, [row(0, 3)])
    assert rated.measure(directory, 0) is not None
    disk.write_json(directory.campaign_file, {"fingerprints": {"generate": "others"}})
    assert rated.measure(directory, 0) is None


def test_only_first_ratings_of_generated_images_count_and_raters_are_averaged(tmp_path: Path) -> None:
    directory = CampaignDirectory(tmp_path)
    rows = [
        *(row(0, 1), row(0, 3, rater="B"), row(1, 1), row(2, 3), row(3, None)),
        row(1, 3, item="again", repeat_of="case1"),
        row(9, 1, source="real", decoy=True, mode=None),
        row(5, 2, mode="baseline"),
        {"set": "s", "rater": "A", "kind": "pair", "item": "pair", "preferred": "a", "mode": "filtered", "file": "x"},
    ]
    rate(directory, rows)
    found = rated.measure(directory, 0)
    assert found is not None
    assert list(found["modes"]) == ["baseline", "filtered"]
    filtered = found["modes"]["filtered"]
    assert (filtered["images"], filtered["mean"]["value"]) == (3, 2.0)
    assert filtered["poor"]["value"] == pytest.approx(1 / 3)
    assert filtered["selector_auroc"] == {"value": None, "low": None, "high": None, "n": 0}
    assert {one["rater"] for one in found["raters"]["raters"]} == {"A", "B"}
    assert found == rated.measure(directory, 0)


def test_the_selectors_auroc_is_that_of_scikit_learn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ratings = generator.integers(1, 4, 80)
    scores = np.round(generator.normal(ratings, 1.0), 1)  # with ties
    directory = CampaignDirectory(tmp_path)
    rate(directory, [row(n, int(rating), selector=scores[n]) for n, rating in enumerate(ratings)])
    found = rated.measure(directory, 0)
    assert found is not None
    auroc = found["modes"]["filtered"]["selector_auroc"]
    assert auroc["value"] == pytest.approx(roc_auc_score(ratings > 1, scores))
    assert 0.5 < auroc["low"] < auroc["value"] < auroc["high"] < 1


def test_intervals_are_over_prompts_not_images(tmp_path: Path) -> None:
    """Ten images of each prompt that are all alike say no more than one does: the interval gets no narrower."""
    directory = CampaignDirectory(tmp_path)
    widths = []
    for copies in (1, 10):
        facts = [(n, c) for n in range(20) for c in range(copies)]
        rate(directory, [row(n, 1 + n % 3, prompt_id=f"p{n}", file=f"{n}-{c}.png") for n, c in facts])
        found = rated.measure(directory, 0)
        assert found is not None
        mean = found["modes"]["filtered"]["mean"]
        widths.append(mean["high"] - mean["low"])
    assert widths[0] == pytest.approx(widths[1])
    assert 0.4 < widths[0] < 1.2


def test_one_prompt_has_no_interval(tmp_path: Path) -> None:
    directory = CampaignDirectory(tmp_path)
    rate(directory, [row(0, 1), row(1, 3)])
    found = rated.measure(directory, 0)
    assert found is not None
    assert found["modes"]["filtered"]["mean"] == {"value": 2.0, "low": None, "high": None, "n": 2}
    assert not math.isnan(found["modes"]["filtered"]["mean"]["value"])
