"""A campaign as the source: its own images, its own data set as decoys, its own ratings as examples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medsyn.cli import app, rate
from medsyn.rating.formats import read_key
from tests.helpers.generated_campaign import generated_campaign


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated_campaign(tmp_path_factory.mktemp("rated") / "tiny").directory.root


def run(*words: str | Path) -> int:
    return app.dispatch("medsyn", {"rate": app.Command("", rate.main)}, ["rate", *map(str, words)])


def test_images_of_all_modalities_and_modes_with_decoys_and_examples(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", campaign, "--out", tmp_path / "set.html", "--images", "12") == 0
    shown = capsys.readouterr()
    assert shown.err == "", "nothing to advise"
    assert "12 images, 2 real images and 2 repeats mixed in, 2 pairs" in shown.out
    key = read_key(tmp_path / "set.key.json")
    first = [key.images[case.image] for case in key.cases.values() if case.repeat_of is None]
    made = Counter((origin.modality, origin.mode, origin.accepted) for origin in first if origin.kind == "generated")
    kinds = [("baseline", True), ("filtered", True), ("filtered", False)]
    assert made == {(modality, *kind): 2 for modality in ("X-Ray", "MRI") for kind in kinds}, "rejected ones too"
    for origin in first:
        assert Path(origin.file).is_relative_to(campaign) and Path(origin.file).is_file()
        assert (origin.prompt_id is None) == (origin.kind == "real")


def test_a_page_is_not_written_into_a_campaign(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", campaign, "--out", campaign / "set.html") == 65
    assert "is a campaign's directory or inside one" in capsys.readouterr().err
    assert not (campaign / "set.html").exists()


def test_an_image_that_has_changed_is_told(campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((campaign / "work" / "generate" / "filtered").glob("*/part-*/block-*/*.png"))
    content = image.read_bytes()
    changed = bytearray(content)
    changed[-1] ^= 1
    image.write_bytes(changed)
    try:
        assert run("export", campaign, "--out", tmp_path / "set.html", "--images", "5000") == 65
    finally:
        image.write_bytes(content)
    assert f"{image}: has changed since it was generated" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_block_is_told_and_one_that_is_not_made_yet_is_not(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = next((campaign / "work" / "generate" / "filtered").glob("*/part-*/block-*"))
    image = next(block.glob("*.png"))
    image.rename(tmp_path / "image.png")
    try:
        assert run("export", campaign, "--out", tmp_path / "one.html") == 65
        assert f"{block}: is damaged" in capsys.readouterr().err
        block.rename(tmp_path / "block")
        assert run("export", campaign, "--out", tmp_path / "two.html") == 0
    finally:
        (tmp_path / "block").rename(block)
        (tmp_path / "image.png").rename(image)
