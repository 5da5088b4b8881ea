"""What the Policy learns from besides ratings."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from medsyn.training.scorers.captions import MOST_PER_ATTRIBUTE, NEAR, NONE, Texts, WrongTexts, collect_texts

TABLES = {
    "CT: mass in the left lung": "CT",
    "CT: mass in the right lung": "CT",
    "CT: nodule in the left lung": "CT",
    "CT: normal": "CT",
    "MRI: normal anatomy": "MRI",
}
ALL: list[str] = []


def embed(texts: Iterable[str]) -> Tensor:
    ALL[:] = texts
    return torch.arange(len(ALL), dtype=torch.float32)[:, None]


@pytest.fixture
def texts() -> Texts:
    return collect_texts(TABLES, embed)


def test_the_tables_texts_come_first_and_every_near_miss_is_embedded(texts: Texts) -> None:
    assert ALL[: texts.tables] == list(TABLES)
    assert len(texts) == len(ALL) == len(texts.pooled) == len(set(ALL))
    assert "CT: nodule in the right lung" in ALL[texts.tables :]  # the other side of one of the tables'
    assert texts.modality[ALL.index("CT: nodule in the right lung")] == "CT"


def test_near_misses_differ_in_one_attribute(texts: Texts) -> None:
    near = {ALL[place] for its in texts.near[0] for place in its}
    assert {"CT: mass in the right lung", "CT: nodule in the left lung", "CT: normal"} == near
    assert texts.near[4] == []


def test_the_other_side_of_a_text_is_known(texts: Texts) -> None:
    assert texts.mirrored[0] == 1 and texts.mirrored[1] == 0
    assert texts.mirrored[3] == NONE


def test_of_many_near_misses_those_that_are_true_of_other_images_are_kept() -> None:
    tables = {f"CT: finding {letter}, axial slice": "CT" for letter in "abcdefgh"}
    texts = collect_texts({**tables, "MRI: brain": "MRI"}, embed)
    assert len(texts.near[0][0]) == MOST_PER_ATTRIBUTE
    assert len(texts) == len(ALL) == 9


def test_wrong_texts_are_near_misses_of_different_attributes_and_others(texts: Texts) -> None:
    wrong = WrongTexts(texts, [("one", 0)])
    drawn = [wrong.draw(0, "one", np.random.default_rng(number)) for number in range(40)]
    assert all(len(its) == NEAR + 1 and 0 not in its for its in drawn)
    sides, findings = {1}, {2, 3}
    assert all(len(sides & set(its[:NEAR])) == 1 and len(findings & set(its[:NEAR])) == 1 for its in drawn)
    assert {its[-1] for its in drawn} == {1, 2, 3, 4}
    assert wrong.draw(0, "one", np.random.default_rng(3)) == drawn[3]


def test_what_is_true_of_another_image_of_the_group_is_not_wrong(texts: Texts) -> None:
    wrong = WrongTexts(texts, [("one", 0), ("one", 1), ("one", 3), ("other", 2)])
    for number in range(40):
        assert not {0, 1, 3} & set(wrong.draw(0, "one", np.random.default_rng(number)))


def test_a_lone_text_has_no_wrong_ones() -> None:
    wrong = WrongTexts(collect_texts({"MRI: brain": "MRI"}, embed), [("one", 0)])
    assert wrong.draw(0, "one", np.random.default_rng(0)) == []
