from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from medsyn import disk
from medsyn.data.phantoms.phantom import KINDS, Label, draw_phantom
from medsyn.evaluation import judge
from medsyn.user_cache import CACHE_VARIABLE

SMALL = judge.JudgeRecipe(images_per_kind=6, epochs=1, batch_size=12, width=8)
Drawn = tuple[list[np.ndarray], list[Label]]


@pytest.fixture(scope="module")
def unseen() -> Drawn:
    return judge.draw(18, draw_seed=12345)


def share(found: dict[str, dict[str, float | int] | None], aspect: str) -> float:
    proportion = found[aspect]
    assert proportion is not None
    return proportion["value"]


def test_the_judge_recognises_phantoms_it_has_never_seen(expert: judge.Judge, unseen: Drawn) -> None:
    images, facts = unseen
    found = judge.agreement(judge.look(expert, images), facts)
    assert share(found, "modality") >= 0.98 and share(found, "kind") >= 0.98
    assert share(found, "finding") >= 0.93
    assert share(found, "side") >= 0.93


def test_the_judge_is_not_talked_into_another_finding(expert: judge.Judge, unseen: Drawn) -> None:
    images, facts = unseen
    wrong = [fact._replace(finding="another finding") for fact in facts]
    assert share(judge.agreement(judge.look(expert, images), wrong), "finding") == 0


def test_a_mirrored_image_is_on_the_other_side(expert: judge.Judge, unseen: Drawn) -> None:
    images, facts = unseen
    found = judge.agreement(judge.look(expert, [image[:, ::-1] for image in images]), facts)
    assert share(found, "side") < 0.1


def test_the_judge_sees_other_sizes(expert: judge.Judge) -> None:
    from tests.helpers.synthetic_campaign import phantom_pixels

    phantoms = [draw_phantom(kind, k, 77, quality=3) for kind in KINDS for k in range(3)]
    verdicts = judge.look(expert, [phantom_pixels(phantom, 128) for phantom in phantoms])
    assert share(judge.agreement(verdicts, [phantom.label for phantom in phantoms]), "kind") == 1


def test_noise_has_no_finding_that_was_asked_for(expert: judge.Judge) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3)).astype(np.uint8)
    asked = [draw_phantom(KINDS[k % 6], k, 5).label for k in range(30)]
    assert share(judge.agreement(judge.look(expert, list(noise)), asked), "finding") <= 0.35


def test_a_finding_counts_only_on_the_right_kind_and_a_side_only_where_there_is_one() -> None:
    asked = [Label("Brain MRI", "enhancing mass", "left", 3), Label("Brain MRI", "normal anatomy", None, 3)]
    seen = [
        judge.Verdict("Breast MRI", "enhancing mass", "left"),
        judge.Verdict("Brain MRI", "normal anatomy", "right"),
    ]
    found = judge.agreement(seen, asked)
    assert share(found, "modality") == 1 and share(found, "kind") == 0.5 and share(found, "finding") == 0.5
    assert found["side"] is None


def test_agreement_on_no_images_is_none() -> None:
    assert judge.agreement([], []) == dict.fromkeys(judge.ASPECTS)


def test_the_same_recipe_gives_the_same_judge_and_no_global_randomness_is_used() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = judge.train(SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = judge.train(SMALL)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
def test_a_judge_is_trained_once_and_again_for_another_recipe(tmp_path: Path) -> None:
    epochs: list[int] = []
    first = judge.load_or_train(tmp_path, SMALL, lambda done, _: epochs.append(done))
    again = judge.load_or_train(tmp_path, SMALL, lambda done, _: epochs.append(done))
    assert epochs == [1] and not again.training
    assert torch.equal(first.finding.weight, again.finding.weight)
    judge.load_or_train(tmp_path, judge.JudgeRecipe(**{**vars(SMALL), "seed": 3}), lambda done, _: epochs.append(done))
    assert epochs == [1, 1]


@pytest.mark.parametrize("damage", ["killed", "torn"])
def test_a_judge_that_was_not_saved_whole_is_trained_again(tmp_path: Path, cache: Path, damage: str) -> None:
    judge.load_or_train(tmp_path / "one", SMALL)
    (kept,) = cache.iterdir()
    for folder in (tmp_path / "one", kept):
        if damage == "killed":
            (folder / "recipe.json").unlink()
        (folder / "model.safetensors").write_bytes(b"torn")
    epochs: list[int] = []
    judge.load_or_train(tmp_path / "one", SMALL, lambda done, _: epochs.append(done))
    assert epochs == [1]
    for folder in (tmp_path / "one", kept):
        assert disk.read_json(folder / "recipe.json") == SMALL.provenance


@pytest.mark.usefixtures("cache")
def test_another_campaign_has_the_judge_of_the_first(tmp_path: Path) -> None:
    epochs: list[int] = []
    for name in ("one", "other"):
        judge.load_or_train(tmp_path / name, SMALL, lambda done, _: epochs.append(done))
    assert epochs == [1]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


def test_without_a_place_for_it_a_judge_is_trained_each_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("not a directory")
    epochs: list[int] = []
    judge.load_or_train(tmp_path / "one", SMALL, lambda done, _: epochs.append(done))
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError))
    judge.load_or_train(tmp_path / "other", SMALL, lambda done, _: epochs.append(done))
    assert epochs == [1, 1]


def test_the_judges_seed_is_no_campaigns_seed() -> None:
    assert judge.RECIPE.seed > 2**32


def test_only_phantom_captions_have_facts() -> None:
    caption = draw_phantom("OCT", 0, 1).caption
    assert judge.labels_of([caption, caption]) == [draw_phantom("OCT", 0, 1).label] * 2
    assert judge.labels_of([caption, "OCT: drusen, seen by a person"]) is None
    assert judge.labels_of([]) is None
