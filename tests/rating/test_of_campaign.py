"""A campaign as the source: its own images, its own data set as decoys, its own ratings as examples."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from medsyn import disk, own_ratings
from medsyn.campaign import guards
from medsyn.cli import app, rate
from medsyn.config import validate
from medsyn.data.tables.read import read_ratings
from medsyn.evaluation import rated as evaluation
from medsyn.rating.formats import RatingSet, SetKey, read_key, seal
from medsyn.rating.order import order_for
from medsyn.rating.sessions import SESSIONS_TABLE
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.scorers import stages
from tests.helpers import rating as expert
from tests.helpers.generated_campaign import SCORER, generated_campaign


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


def opinion(key: SetKey, image: str) -> int:
    """What a scripted expert thinks: of the images of a prompt some are poor; real ones are fine."""
    origin = key.images[image]
    return 3 if origin.kind == "real" else 1 + int(origin.sha256[:8], 16) % 3


def answer(page: Path, folder: Path, rater: str) -> Path:
    """Rate a whole page in the rater's own order, as the page does."""
    key = read_key(page.with_suffix(".key.json"))
    found = re.search(r'<script type="application/json" id="set">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    shown = json.loads(found[1])
    assert shown.pop("hash") == key.set
    turns = order_for(RatingSet.model_validate_json(json.dumps(shown)), rater)
    tree = expert.answers(key, rater, lambda image: opinion(key, image))
    by_item = {one["item"]: one for one in tree["answers"]}
    assert by_item.keys() == {turn.item for turn in turns}
    answers = [
        by_item[turn.item] | {"order": place, "serial": place, "shown": list(turn.shown)}
        for place, turn in enumerate(turns)
    ]
    unsealed = {name: value for name, value in tree.items() if name != "integrity"}
    return expert.write_answers(folder / f"{rater}.json", seal(unsealed | {"answers": answers}))


@pytest.fixture
def rated(campaign: Path, tmp_path: Path) -> Iterator[tuple[Path, list[str | Path]]]:
    """A campaign, and the words of an import of what an expert says of its images."""
    page = tmp_path / "set.html"
    assert run("export", campaign, "--out", page, "--images", "5000") == 0
    yield campaign, ["import", answer(page, tmp_path, "R1"), "--key", page.with_suffix(".key.json")]
    shutil.rmtree(campaign / "ratings", ignore_errors=True)


@pytest.mark.slow
def test_from_a_campaigns_images_to_scorers_that_learn_from_an_expert(
    rated: tuple[Path, list[str | Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """export, a scripted expert, import, and stage 1 of the next round on the ratings, copies of images included."""
    first, words = rated
    assert run(*words, "--campaign", first) == 0
    assert f"medsyn resume {first}" in capsys.readouterr().out.replace("uv run ", "")
    assert own_ratings.current(CampaignDirectory(first)) == disk.sha256_file(first / "ratings" / SESSIONS_TABLE)
    scorer = SCORER.model_dump()
    tree = {
        "campaign": {"name": "second", "dir": str(tmp_path / "second")},
        "data": {
            "table": str(first / "phantoms" / "metadata.csv"),
            "ratings_file": str(first / "ratings" / "ratings.csv"),
            **{"modalities": ["X-Ray", "MRI"], "resolution": 32, "held_out_fraction": 0.4},
        },
        "device": {"use_cuda": False},
        "training": {"max_epochs": 1, "batch_size": 8, "stage": 1},
        "generation": {"batch_size": 2},
        **{"selector": scorer, "policy_model": scorer},
    }
    second = guards.open_for_change(validate(tree, "test"), here=True)
    stages.run_stage1(second.config, Task("rlhf-stage1", 0, "all"), second.directory, Control())
    assert second.directory.selector().is_dir() and second.directory.policy().is_dir()
    ratings = read_ratings(first / "ratings" / "ratings.csv").require(strict=True)
    assert len(ratings) > 20 and {row.rating for row in ratings} == {1, 2, 3}
    assert second.counts["ratings"].keys() == {"X-Ray", "MRI"}
    assert sum(second.counts["ratings"].values()) == len(ratings)

    found = evaluation.measure(CampaignDirectory(first), 0)
    assert found is not None and set(found["modes"]) == {"baseline", "filtered"}
    means = {mode: its["mean"] for mode, its in found["modes"].items()}
    assert all(1 < mean["low"] < mean["value"] < mean["high"] < 3 for mean in means.values())
    assert found["modes"]["filtered"]["selector_auroc"]["n"] == found["modes"]["filtered"]["images"] > 0


def test_importing_again_changes_nothing(rated: tuple[Path, list[str | Path]]) -> None:
    first, words = rated
    files = []
    for _ in range(2):
        assert run(*words, "--campaign", first) == 0
        files.append({path: path.read_bytes() for path in (first / "ratings").rglob("*") if path.is_file()})
    assert files[0] == files[1]


def test_ratings_of_other_images_and_options_of_other_imports_are_refused(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = expert.write_set(tmp_path)
    answers = expert.write_answers(tmp_path / "R1.json", expert.answers(read_key(key), "R1", lambda image: 2))
    words = ["import", answers, "--key", key, "--campaign", campaign, "--with-decoys", "--root", tmp_path]
    assert run(*words) == 65
    told = capsys.readouterr().err
    assert f"{key}: is of other images than those of {campaign}, such as {tmp_path}" in told
    assert "--with-decoys: is for --out" in told and "--root: is for --out" in told
    assert not (campaign / "ratings").exists()


def test_answers_without_a_rating_open_no_gate(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "set.html"
    assert run("export", campaign, "--out", page, "--images", "4", "--pairs", "0") == 0
    key = read_key(page.with_suffix(".key.json"))
    unsure = expert.write_answers(tmp_path / "R1.json", expert.answers(key, "R1", lambda image: None))
    assert run("import", unsure, "--key", page.with_suffix(".key.json"), "--campaign", campaign) == 65
    assert "there is no rating among the answers" in capsys.readouterr().err
    assert own_ratings.current(CampaignDirectory(campaign)) is None
    shutil.rmtree(campaign / "ratings")
