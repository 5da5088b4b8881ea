from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medsyn.data.phantoms.phantom import draw_phantom
from medsyn.evaluation import coverage, read_campaign, tally
from medsyn.evaluation.report_tables import achieved as table_of
from medsyn.stage import Control
from tests.helpers.synthetic_campaign import Builder, write_csv

HEADER = ("id", "prompt", "modality", "n", "finding", "serial")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """Six prompts of two findings or of none; the synthetic blocks refuse the second image of each modality."""
    builder = Builder(tmp_path, overrides={"generation": {"img_num": 2}})
    builder.tables()
    rows: list[tuple[Any, ...]] = []
    for number in range(6):
        kind, modality = ("OCT", "OCT") if number < 3 else ("Chest CT", "CT")
        caption = draw_phantom(kind, number, 1).caption
        rows.append(
            (f"p{number}", caption, modality, 5 if number == 0 else "", "" if number == 5 else "ab"[number % 2], number)
        )
    write_csv(builder.data / "prompts.csv", HEADER, rows)
    builder.prepare_prompts()
    for mode in ("baseline", "filtered"):
        for modality in builder.modalities:
            builder.blocks(mode, modality)
    return builder


@pytest.fixture
def measure(builder: Builder) -> Callable[[], dict[tuple[Any, ...], tuple[int, int, int]]]:
    def cells() -> dict[tuple[Any, ...], tuple[int, int, int]]:
        gathered = read_campaign.gather(builder.config, builder.directory, Control().leave_if_asked)
        found = coverage.measure(gathered, ["baseline", "filtered"], 2)["cells"]
        return {
            (cell["modality"], cell["column"], cell["value"]): (cell["asked"], cell["baseline"], cell["filtered"])
            for cell in found
        }

    return cells


def test_every_modality_and_every_value_is_counted_as_asked_and_as_accepted(measure: Callable[[], Any]) -> None:
    assert measure() == {
        ("OCT", None, None): (9, 9, 8),
        ("CT", None, None): (6, 6, 5),
        ("OCT", "finding", "a"): (7, 7, 6),
        ("OCT", "finding", "b"): (2, 2, 2),
        ("CT", "finding", "b"): (2, 2, 1),
        ("CT", "finding", "a"): (2, 2, 2),
        ("CT", "finding", None): (2, 2, 2),
        ("OCT", "serial", "0"): (5, 5, 4),
        ("OCT", "serial", "1"): (2, 2, 2),
        ("OCT", "serial", "2"): (2, 2, 2),
        ("CT", "serial", "3"): (2, 2, 1),
        ("CT", "serial", "4"): (2, 2, 2),
        ("CT", "serial", "5"): (2, 2, 2),
    }


def test_a_column_with_a_value_for_every_prompt_is_named_and_not_counted(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "MOST_VALUES", 2)
    gathered = read_campaign.gather(builder.config, builder.directory, Control().leave_if_asked)
    found = coverage.measure(gathered, ["baseline", "filtered"], 2)
    assert found["dropped"] == ["serial"]
    assert {cell["column"] for cell in found["cells"]} == {None, "finding"}


def test_what_was_never_made_counts_as_asked(builder: Builder, measure: Callable[[], Any]) -> None:
    for block in builder.directory.work("generate", "filtered").glob("ct/**/manifest.jsonl"):
        block.unlink()
    assert measure()["CT", None, None] == (6, 6, 0)
    assert measure()["CT", "finding", "a"] == (2, 2, 0)


def test_the_table_says_which_share_each_value_has_of_what_was_asked_and_of_what_there_is(builder: Builder) -> None:
    gathered = read_campaign.gather(builder.config, builder.directory, Control().leave_if_asked)
    found = coverage.measure(gathered, ["baseline", "filtered"], 2)
    result = {"achieved": found, "groups": {"all": {"generation": {"baseline": {}, "filtered": {}}}}}
    table = table_of(result)
    assert table is not None
    assert list(table.header) == ["", "asked", "baseline", "filtered"]
    rows = {(row[0].text, row[0].detail): [(cell.text, cell.detail) for cell in row[1:]] for row in table.rows}
    assert rows["CT", ""] == [("6", "40 %"), ("6", "40 %"), ("5", "38 %")]
    assert rows["a", "CT, finding"] == [("2", "33 %"), ("2", "33 %"), ("2", "40 %")]


def test_with_one_modality_and_no_column_there_is_nothing_to_compare() -> None:
    cell = {"modality": "CT", "column": None, "value": None, "asked": 3, "baseline": 3}
    result = {"achieved": {"cells": [cell], "dropped": []}, "groups": {"all": {"generation": {"baseline": {}}}}}
    assert table_of(result) is None
