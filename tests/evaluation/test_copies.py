"""A campaign's copies of training images: found, shown, listed, and in the verdict."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.data.tables.read import dataset_of
from medsyn.data.tables.split import hold_out
from medsyn.evaluation import evaluate
from medsyn.evaluation.memorization import planted
from medsyn.generation.block_store import MANIFEST
from medsyn.stage import Control, Task
from tests.helpers.synthetic_campaign import Builder


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory, expert_directory: Path) -> tuple[Builder, dict[str, Any]]:
    """A campaign of which one filtered image is a training image, and one baseline image is, too."""
    section = {"copies": True, "copies_honest": 12, "copies_planted": 1}
    folder = tmp_path_factory.mktemp("copied")
    builder = Builder(folder, kinds=("OCT",), overrides={"evaluation": section}).everything()
    rows = dataset_of(builder.config.data).rows
    is_held_out = hold_out(rows, builder.config.data.held_out_fraction, builder.config.campaign.seed)
    source = next(row for row in rows if not is_held_out(row))
    for mode in ("filtered", "baseline"):
        replace_image(builder.directory.block(mode, "OCT", 0), source.path.read_bytes())
    shutil.copytree(expert_directory, builder.directory.work("evaluate", "all") / "judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted, "CHANGES", {"flip": planted.CHANGES["flip"]})
        evaluate.run(builder.config, Task("evaluate", 0, "all"), builder.directory, Control())
    metrics = disk.read_json(builder.directory.work("evaluate", "all") / "metrics.json")
    return builder, {**metrics, "source": source.file}


def replace_image(block: Path, png: bytes) -> None:
    """Put another image in place of a block's first."""
    manifest = list(disk.read_jsonl(block / MANIFEST))
    line = next(line for line in manifest if line["file"])
    (block / line["file"]).write_bytes(png)
    line |= {"bytes": len(png), "sha256": hashlib.sha256(png).hexdigest()}
    (block / MANIFEST).write_text("".join(json.dumps(each) + "\n" for each in manifest))


def test_a_copy_of_a_training_image_is_listed_with_its_source(copied: tuple[Builder, dict[str, Any]]) -> None:
    builder, metrics = copied
    with (builder.directory.work("evaluate", "all") / "copies" / "exclude.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    (found,) = [row for row in rows if row["source"] == metrics["source"]]
    assert (builder.directory.root / "work" / "generate" / found["file"]).is_file()
    assert found["file"].startswith("filtered/oct/part-000/block-000000/")
    assert [one["name"] for one in metrics["copies"]["copies"]] == [row["file"] for row in rows]


def test_images_of_the_pretrained_model_are_not_searched(copied: tuple[Builder, dict[str, Any]]) -> None:
    _, metrics = copied
    assert metrics["copies"]["images"] == metrics["groups"]["OCT"]["n"]["filtered"]


def test_the_verdict_and_the_page_say_so(copied: tuple[Builder, dict[str, Any]]) -> None:
    builder, metrics = copied
    (answer,) = [one for one in metrics["verdict"]["modalities"]["OCT"] if one["question"] == "copies"]
    assert answer["level"] == "bad"
    assert "there are copies of training images" in metrics["verdict"]["summary"]
    page = builder.directory.report.read_text()
    assert page.count('<figure class="pair">') == len(metrics["copies"]["copies"])
    assert "copies planted on purpose" in page
    assert "patient-oct" not in page + str(metrics)
