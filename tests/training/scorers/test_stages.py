"""RLHF, mean things first: killed and altered runs, filters that must filter, claims that must be honest."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medsyn import disk
from medsyn.config import Config, validate
from medsyn.data.images.read import SYNTHETIC_KEY
from medsyn.errors import InputError, InputProblems
from medsyn.models import stable_diffusion, tiny
from medsyn.models.scorers import PROVENANCE, load_policy, load_selector
from medsyn.models.scores import Evidence, Interval
from medsyn.stage import CampaignDirectory, Control, NoProgress, Saved, Task
from medsyn.training.run import EVENT_FILES
from medsyn.training.scorers import policy_learner, report, stages
from medsyn.training.scorers.exam import Record
from medsyn.training.scorers.learner import Step
from medsyn.training.scorers.policy_learner import PolicyLearner
from medsyn.training.scorers.publish import Gain
from medsyn.training.scorers.sources import Sources
from tests.helpers.event_files import assert_as_metrics
from tests.helpers.rated_pictures import picture

STAGE1 = Task("rlhf-stage1", 0, "all")
STAGE2 = Task("rlhf-stage2", 0, "ct", "CT")
SCORER = {"image_size": 32, "patch_size": 16, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
SCORER |= {"members": 3}
MEMBERS = 3
EPOCHS = 4
FIGURES = ["held_out_loss", "auroc", "spearman", "calibration_error", "filter_at_4"]
IMAGES = 36  # rated ones, two thirds CT
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_random(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IMAGES pictures, every fourth rated by a second rater."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["image_path,rating,modality,expert_level,prompt"]
    for number in range(IMAGES):
        rating, modality = 1 + number % 3, "MRI" if number % 9 < 3 else "CT"
        Image.fromarray(picture(number, rating)).save(folder / f"{number}.png")
        row = f"{number}.png,{rating},{modality},{{}},{modality}: finding {number % 4}"
        lines += [row.format(3)] + ([row.format(1)] if number % 4 == 0 else [])
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    return folder / "ratings.csv"


def campaign(weights: Path, table: Path, **changes: Any) -> Config:
    """A configuration; `changes` are sections."""
    tree: dict[str, Any] = {
        "data": {"ratings_file": str(table), "resolution": 32, "modalities": ["CT", "MRI"], "held_out_fraction": 0.35},
        "model_paths": {"stable_diffusion": str(weights)},
        "training": {
            "max_epochs": EPOCHS,
            "batch_size": 8,
            "stage1": {"learning_rate": 3e-3},
            "stage2": {"learning_rate": 1e-3},
            "checkpoints": {"save_frequency": 2},
        },
        "selector": {**SCORER, "artifact_detection": False},  # damaged copies take longer than all else; see below
        "policy_model": SCORER,
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return validate(tree, "test")


class StopAt(Control):
    """Asks the task to leave once it has done `step` steps, as a signal that arrives just then would."""

    def __init__(self, step: int, unit: str = "step") -> None:
        super().__init__()
        self.step, self.unit = step, unit

    def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
        if unit == self.unit and step >= self.step:
            self.request_stop()


class KillAt(StopAt):
    """Dies at once, saving nothing, as kill -9 would have it."""

    def request_stop(self) -> None:
        raise KeyboardInterrupt


def stage1(config: Config, root: Path, control: Control | None = None) -> None:
    stages.run_stage1(config, STAGE1, CampaignDirectory(root), control or Control())


def stage2(config: Config, root: Path, control: Control | None = None, task: Task = STAGE2) -> None:
    stages.run_stage2(config, task, CampaignDirectory(root), control or Control())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def metrics(root: Path, task: Task = STAGE1) -> list[dict[str, Any]]:
    return list(disk.read_jsonl(root / "work" / task.stage / task.name / "metrics.jsonl"))


def summary(root: Path, task: Task = STAGE1) -> dict[str, Any]:
    return disk.read_json(root / "work" / task.stage / task.name / "summary.json")


@pytest.fixture(scope="module")
def undisturbed(weights: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, never interrupted: what every disturbed run must end in."""
    root = tmp_path_factory.mktemp("undisturbed")
    stage1(campaign(weights, table), root)
    stage2(campaign(weights, table), root)
    return root


@pytest.fixture
def after_stage1(undisturbed: Path, tmp_path: Path) -> Path:
    """A campaign whose stage 1 is done."""
    for part in ("work/rlhf-stage1", "cache"):
        shutil.copytree(undisturbed / part, tmp_path / part)
    return tmp_path


# --- interrupted is uninterrupted


@pytest.mark.parametrize("stops", [[4], [1, 3, 8, 11, 12, 16]], ids=str)
def test_a_run_that_was_asked_to_leave_ends_in_the_same_bytes(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path, stops: list[int]
) -> None:
    for step in stops:
        with pytest.raises(Saved):
            stage1(campaign(weights, table), tmp_path, StopAt(step))
    stage1(campaign(weights, table), tmp_path)
    assert contents(tmp_path / "work/rlhf-stage1") == contents(undisturbed / "work/rlhf-stage1")


@pytest.mark.parametrize("step", [1, 9])
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage1(campaign(weights, table), tmp_path, KillAt(step))
    stage1(campaign(weights, table), tmp_path)
    assert contents(tmp_path / "work/rlhf-stage1") == contents(undisturbed / "work/rlhf-stage1")


def test_stage_2_too(weights: Path, table: Path, undisturbed: Path, after_stage1: Path) -> None:
    config = campaign(weights, table, training={"report_to": "tensorboard"})
    with pytest.raises(Saved):
        stage2(config, after_stage1, StopAt(3))
    with pytest.raises(KeyboardInterrupt):
        stage2(config, after_stage1, KillAt(6))
    stage2(config, after_stage1)
    work = after_stage1 / "work/rlhf-stage2/ct"
    assert_as_metrics(work, "epoch")
    shutil.rmtree(work / EVENT_FILES)
    assert contents(after_stage1 / "work/rlhf-stage2") == contents(undisturbed / "work/rlhf-stage2")


def test_a_stop_while_images_are_read_saves_them(weights: Path, table: Path, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Saved):
        stage1(campaign(weights, table), tmp_path, StopAt(5, "image"))
    stage1(campaign(weights, table), tmp_path)
    assert contents(tmp_path / "work/rlhf-stage1") == contents(undisturbed / "work/rlhf-stage1")


def test_a_kill_between_the_two_scorers_is_made_good(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = stages.save_scorer

    def save_only_the_selector(model: Any, directory: Path, facts: Any) -> None:
        if directory.name == "policy":
            raise KeyboardInterrupt
        save(model, directory, facts)

    monkeypatch.setattr(stages, "save_scorer", save_only_the_selector)
    with pytest.raises(KeyboardInterrupt):
        stage1(campaign(weights, table), tmp_path)
    monkeypatch.undo()
    stage1(campaign(weights, table), tmp_path)
    assert contents(tmp_path / "work/rlhf-stage1") == contents(undisturbed / "work/rlhf-stage1")


def test_what_is_done_is_not_done_again(
    weights: Path, table: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "fit", lambda *_, **__: pytest.fail("it trained again"))
    before = contents(undisturbed / "work")
    stage1(campaign(weights, table), undisturbed)
    stage2(campaign(weights, table), undisturbed)
    assert contents(undisturbed / "work") == before


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("campaign", {"seed": 1}, "campaign.seed"),
        ("training", {"max_epochs": 9}, "training.max_epochs"),
        ("raters", {"expert_weights": False}, "raters.expert_weights"),
        ("selector", {"hidden_dim": 32}, "selector.hidden_dim"),
    ],
)
def test_other_settings_are_refused_by_name_before_and_after_the_end(
    weights: Path, table: Path, undisturbed: Path, tmp_path: Path, section: str, values: dict[str, Any], key: str
) -> None:
    changed = campaign(weights, table, **{section: values})
    with pytest.raises(InputError, match=key):
        stage1(changed, undisturbed)
    with pytest.raises(Saved):
        stage1(campaign(weights, table), tmp_path, StopAt(1))
    with pytest.raises(InputError, match=key):
        stage1(changed, tmp_path)


@pytest.mark.parametrize("change", ["rating", "image"])
def test_other_ratings_or_images_are_refused(weights: Path, table: Path, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(table.parent, tmp_path / "data")
    with pytest.raises(Saved):
        stage1(campaign(weights, folder / table.name), tmp_path / "run", StopAt(1))
    if change == "rating":
        text = (folder / table.name).read_text()
        (folder / table.name).write_text(text.replace("35.png,3,", "35.png,2,"))
    else:
        Image.fromarray(picture(99, 3)).save(folder / "35.png")
    with pytest.raises(InputError, match=r"data\.ratings_file"):
        stage1(campaign(weights, folder / table.name), tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_learner, "cross_entropy", lambda logits, *_: logits.sum() * math.nan)
    with pytest.raises(NoProgress, match="lower the learning rate"):
        stage1(campaign(weights, table), tmp_path)
    assert not (tmp_path / "work/rlhf-stage1/all/policy").exists()


# --- what stage 1 learns and says


def test_stage_1_leaves_exactly_what_it_says(undisturbed: Path) -> None:
    work = undisturbed / "work/rlhf-stage1/all"
    assert sorted(path.name for path in work.iterdir()) == ["metrics.jsonl", "policy", "selector", "summary.json"]
    lines = metrics(undisturbed)
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    figures = [f"{name}_{what}" for name in ("selector", "policy") for what in FIGURES]
    of_all = ["epoch", "selector_loss", "policy_loss", "pass_rate", "reward_good", "reward_poor"]
    rates = ["selector_learning_rate", "policy_learning_rate"]
    assert all(sorted(line) == sorted([*of_all, *figures, *rates]) for line in lines)
    assert all(value is not None for line in lines for value in line.values())


def test_scores_of_images_never_seen_follow_their_quality(undisturbed: Path, weights: Path) -> None:
    directory = CampaignDirectory(undisturbed)
    selector, policy = load_selector(directory.selector(), CPU), load_policy(directory.policy(), CPU)
    new = {r: np.stack([picture(1000 + 10 * n + r, r) for n in range(12)]) for r in (1, 2, 3)}
    pixels = {r: torch.from_numpy(p)[:, None].expand(-1, 3, -1, -1).float() / 255 for r, p in new.items()}
    pooled = (
        stable_diffusion.load_synthetic(str(weights), CPU, with_unet=False).embed("CT: finding 0")[1].expand(12, -1)
    )
    for poor, good in (
        (selector.score(pixels[1]).score, selector.score(pixels[3]).score),
        (policy.score(pixels[1], pooled).score, policy.score(pixels[3], pooled).score),
    ):
        assert float(poor.mean()) < float(good.mean()) - 0.1
        assert (poor[:, None] < good).float().mean() > 0.9


def test_the_summary_is_of_images_that_members_had_not_seen(undisturbed: Path, table: Path) -> None:
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    said = summary(undisturbed)
    assert said["ratings"] == len(rows) and said["images"] == IMAGES and said["skipped"] == 0
    assert (said["held_out"]["folds"], said["held_out"]["groups"]) == (MEMBERS, IMAGES)
    assert "not trained on the image's group" in said["held_out"]["note"]
    good = {name: len({row[0] for row in rows if row[2] == name and row[1] != "1"}) for name in ("CT", "MRI")}
    assert {name: part["good"] for name, part in said["thresholds"].items()} == good
    for name in ("selector", "policy"):
        assert said[name]["loss"] == metrics(undisturbed)[said[name]["epoch"] - 1][f"{name}_held_out_loss"]
        assert said[name]["loss"] == min(line[f"{name}_held_out_loss"] for line in metrics(undisturbed))
        assert said[name]["auroc_last_epoch"] == metrics(undisturbed)[-1][f"{name}_auroc"]
        assert len(said[name]["epochs_by_fold"]) == MEMBERS
    assert set(said["selector"]["auroc_by_modality"]) == {"CT", "MRI"}
    assert set(said["policy"]) >= {"auroc_rating", "auroc_prompt", "auroc_prompt_same_modality", "calibration_error"}


def test_the_cards_say_what_the_summary_says(undisturbed: Path) -> None:
    directory, said = CampaignDirectory(undisturbed), summary(undisturbed)
    selector, policy = load_selector(directory.selector(), CPU), load_policy(directory.policy(), CPU)
    assert len(selector.members) == len(policy.members) == MEMBERS
    for scorer, name in ((selector, "selector"), (policy, "policy")):
        card = scorer.card
        assert card.modalities == ["CT", "MRI"] and card.evidence.auroc.n == IMAGES
        assert card.evidence.calibration_error is not None
        assert set(card.evidence.by_modality) == {"CT", "MRI"}
        assert all(one.n > 1 and one.low <= one.value <= one.high for one in card.evidence.by_modality.values())
        assert len(set(scorer.calibration.slope.tolist())) == 3, name
    assert {name: one.model_dump() for name, one in selector.card.thresholds.items()} == said["thresholds"]
    assert selector.card.evidence.auroc.value == said["selector"]["auroc"] and not policy.card.thresholds


def test_noise_is_unfamiliar_and_new_images_are_not(undisturbed: Path) -> None:
    selector = load_selector(CampaignDirectory(undisturbed).selector(), CPU)
    new = torch.stack([torch.from_numpy(picture(2000 + n, 1 + n % 3)) for n in range(24)])
    noise = torch.randint(0, 256, (24, 32, 32), generator=torch.Generator().manual_seed(0))
    known, unknown = (
        selector.score(pixels[:, None].expand(-1, 3, -1, -1).float() / 255).unfamiliar for pixels in (new, noise)
    )
    assert float(known.float().mean()) < 0.2 and bool(unknown.all())


def test_with_too_few_poor_images_there_is_one_member_and_no_evidence(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(table.parent, tmp_path / "data")
    lines = table.read_text().splitlines()
    few = [line for line in lines[1:] if line.split(",")[1] != "1"]
    (folder / table.name).write_text("\n".join([lines[0], next(x for x in lines if ",1,CT" in x), *few]) + "\n")
    config = campaign(weights, folder / table.name, training={"max_epochs": 1})
    stage1(config, tmp_path / "run")
    stage2(config, tmp_path / "run")
    selector, said = load_selector(CampaignDirectory(tmp_path / "run").selector(), CPU), summary(tmp_path / "run")
    assert len(selector.members) == 1 and selector.card.evidence == Evidence() and selector.card.thresholds == {}
    assert said["held_out"]["note"] == said["selector"]["reason"] == report.ALONE
    assert metrics(tmp_path / "run")[0]["selector_auroc"] is None
    scores = selector.score(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert bool(scores.score.isfinite().all()) and not scores.spread.any()
    second = summary(tmp_path / "run", STAGE2)
    assert second["kept"] == "stage 1" and second["reason"] == report.ALONE


# --- inputs


def test_rated_images_pass_the_decoder_once_and_synthetic_ones_do_not(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(table.parent, tmp_path / "data")
    mark = PngInfo()
    mark.add_text(SYNTHETIC_KEY, "YES")
    Image.fromarray(picture(0, 1)).save(folder / "0.png", pnginfo=mark)
    calls = {"encode": 0, "decode": 0, "embed": 0}
    for name in calls:
        monkeypatch.setattr(stable_diffusion.SyntheticSystem, name, _counted(calls, name))
    config = campaign(weights, folder / table.name, raters={"match_decoder": True}, training={"max_epochs": 1})
    stage1(config, tmp_path / "run")
    assert calls == {"encode": IMAGES - 1, "decode": IMAGES - 1, "embed": 8}
    stage2(config, tmp_path / "run")
    assert calls == {"encode": IMAGES - 1, "decode": IMAGES - 1, "embed": 8}


def test_rated_images_are_seen_as_they_are_and_good_ones_as_the_decoder_gives_them_back_too(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(table.parent, tmp_path / "data")
    mark = PngInfo()
    mark.add_text(SYNTHETIC_KEY, "YES")
    Image.fromarray(picture(1, 2)).save(folder / "1.png", pnginfo=mark)
    seen: list[Any] = []
    monkeypatch.setattr(
        stages, "fit", lambda learners, *_, **__: seen.append(learners["selector"].lessons) or sys.exit()
    )
    with pytest.raises(SystemExit):
        stage1(campaign(weights, folder / table.name), tmp_path / "run")
    (lessons,) = seen
    good = IMAGES * 2 // 3
    assert len(lessons.pixels) == IMAGES + good - 1 and len(lessons.pulls.image) == good - 1  # 1.png was generated
    for number in (0, 1, 2):
        assert np.array_equal(lessons.pixels[number, 0].numpy(), picture(number, 1 + number % 3))
    assert lessons.pulls.target.tolist() == [1.0] * (good - 1)
    assert sorted(lessons.group[lessons.pulls.image].tolist()) == sorted(
        f"{n}.png" for n in range(IMAGES) if n % 3 and n != 1
    )


def _counted(calls: dict[str, int], name: str) -> Any:
    original = getattr(stable_diffusion.SyntheticSystem, name)

    def counted(self: Any, argument: Any) -> Any:
        calls[name] += 1
        return original(self, argument)

    return counted


def test_without_expert_weights_all_ratings_count_the_same(
    weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(stages, "fit", lambda learners, *_, **__: seen.append(learners["policy"].rated) or sys.exit())
    for weighted in (True, False):
        with pytest.raises(SystemExit):
            stage1(campaign(weights, table, raters={"expert_weights": weighted}), tmp_path / str(weighted))
    expert, plain = (rated.weight for rated in seen)
    assert np.unique(plain).tolist() == [1.0]
    assert sorted(set((expert / expert.min()).round(3).tolist())) == [1.0, 3.0]  # expert levels 1 and 3
    assert expert.mean() == pytest.approx(1)
    assert np.array_equal(seen[0].reward, seen[1].reward)


@pytest.mark.parametrize("strict", [True, False])
def test_an_image_that_cannot_be_read(weights: Path, table: Path, tmp_path: Path, strict: bool) -> None:
    folder = shutil.copytree(table.parent, tmp_path / "data")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:90])
    config = campaign(weights, folder / table.name, data={"strict": strict}, training={"max_epochs": 1})
    if strict:
        with pytest.raises(InputProblems) as caught:
            stage1(config, tmp_path / "run")
        (problem,) = caught.value.problems
        assert problem.row == 11 and "7.png" in problem.reason and problem.source == str(folder / table.name)
    else:
        stage1(config, tmp_path / "run")
        assert summary(tmp_path / "run")["skipped"] == 1
        assert summary(tmp_path / "run")["images"] == IMAGES - 1


def test_ratings_of_one_kind_cannot_be_trained_on(weights: Path, table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    poor = next(line for line in lines[1:] if line.split(",")[1] == "1").split(",")[0]
    its = [line for line in lines[1:] if line.split(",")[1] != "1" and not line.startswith(f"{poor},")]
    folder = shutil.copytree(table.parent, tmp_path / "data")
    (folder / table.name).write_text("\n".join([lines[0], f"{poor},1,CT,3,CT: unreadable", *its]) + "\n")
    (folder / poor).write_bytes(b"no image")
    config = campaign(weights, folder / table.name, data={"strict": False}, training={"max_epochs": 1})
    with pytest.raises(InputError, match="all good or all poor"):
        stage1(config, tmp_path / "run")


def test_no_rating_of_the_campaigns_modalities(weights: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no ratings for OCT"):
        stage1(campaign(weights, table, data={"modalities": ["OCT"]}), tmp_path)


def test_without_a_selector_everything_passes(weights: Path, table: Path, tmp_path: Path) -> None:
    untrained = {"stage1": {"train_selector": False, "learning_rate": 3e-3}, "max_epochs": 1}
    baseline = campaign(weights, table, training=untrained, generation={"modes": ["baseline"]})
    stage1(baseline, tmp_path)
    assert not CampaignDirectory(tmp_path).selector().exists()
    assert "selector_loss" not in metrics(tmp_path)[0]
    stage2(baseline, tmp_path)
    assert summary(tmp_path, STAGE2)["pass_rate"] == 1


def test_cached_ratings_need_no_generator(
    weights: Path, table: Path, after_stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable_diffusion, "load_synthetic", lambda *_, **__: pytest.fail("seven seconds for nothing"))
    stage2(campaign(weights, table), after_stage1)


# --- stage 2


def test_stage_2_leaves_exactly_what_it_says(undisturbed: Path) -> None:
    work = undisturbed / "work/rlhf-stage2/ct"
    assert sorted(path.name for path in work.iterdir()) == ["metrics.jsonl", "policy", "selector", "summary.json"]
    fields = ["epoch", "policy_loss", "reward_good", "reward_poor", "pass_rate", "policy_learning_rate"]
    fields += [f"policy_{what}" for what in FIGURES]
    assert all(sorted(line) == sorted(fields) for line in metrics(undisturbed, STAGE2))
    said = summary(undisturbed, STAGE2)
    assert said["reason"] and said["kept"] == ("stage 2" if said["gain"]["low"] > 0 else "stage 1")


def test_the_selector_decides_what_stage_2_trains_on(
    weights: Path, table: Path, after_stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed rows and rejected poor ones; rejected good ones are left out, and so are other modalities."""
    monkeypatch.setattr(stages, "_passed", lambda selector, threshold, rated, sources: rated.image % 2 == 1)
    learners: list[PolicyLearner] = []
    monkeypatch.setattr(stages, "fit", lambda found, *_, **__: learners.append(found["policy"]) or sys.exit())
    with pytest.raises(SystemExit):
        stage2(campaign(weights, table), after_stage1)
    (learner,) = learners
    rated = learner.rated
    assert set(rated.modality) == {"CT"} and len(rated.pooled) == 8  # wrong prompts may come from MRI
    wanted = (rated.image % 2 == 1) | (rated.rating == 1)
    assert wanted.any() and (~wanted).any()
    shown: list[np.ndarray] = []
    monkeypatch.setattr(learner.images, "training", lambda images, epoch: shown.append(images) or sys.exit())
    with pytest.raises(SystemExit):
        learner.teach(Step(0, 0, np.arange(len(rated.line))))
    assert set(shown[0].tolist()) == set(rated.image[wanted].tolist())


def test_the_training_filter_asks_the_member_that_has_not_seen_the_image(
    weights: Path, table: Path, after_stage1: Path
) -> None:
    config, directory = campaign(weights, table), CampaignDirectory(after_stage1)
    sources = Sources(config, STAGE2, directory)
    rated, _ = sources.load(sources.loading(Control()))
    selector = load_selector(directory.selector(), CPU)
    folds = sources.folds.of(rated.image_group.tolist())
    own = torch.from_numpy(np.intersect1d(np.flatnonzero(folds == 1), rated.image))
    logits = selector.members[1](rated.pixels[own].float() / 255)
    scores = selector.calibration(logits, selector.row_of("CT"))
    threshold = float(scores.median())
    passed = stages._passed(selector, threshold, rated, sources)
    expected = dict(zip(own.tolist(), (scores >= threshold).tolist(), strict=True))
    assert {int(i): bool(p) for i, p in zip(rated.image, passed, strict=True) if int(i) in expected} == expected


@pytest.mark.parametrize(("threshold", "rate"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_pass_rate_follows_the_threshold(
    weights: Path, table: Path, after_stage1: Path, threshold: float, rate: float
) -> None:
    config = campaign(weights, table, training={"stage2": {"selector_threshold": threshold}, "max_epochs": 1})
    # another max_epochs than stage 1's: only stage 1's weights count
    stage2(config, after_stage1)
    said = summary(after_stage1, STAGE2)
    assert said["pass_rate"] == rate
    assert said["left_out"] == 0 if rate else said["left_out"] > 0
    assert said["trained_on"]["passed"] == 0 if not rate else said["trained_on"]["passed"] > 0


@pytest.mark.parametrize(("low", "kept"), [(0.01, "stage 2"), (-0.01, "stage 1"), (None, "stage 1")])
def test_stage_2_is_kept_where_its_gain_is_above_0_beyond_doubt(
    weights: Path, table: Path, after_stage1: Path, monkeypatch: pytest.MonkeyPatch, low: float | None, kept: str
) -> None:
    found = Gain(Interval(value=0.02, low=low, high=0.03, n=24), Interval())
    monkeypatch.setattr(stages, "gain", lambda *_: found)
    monkeypatch.setattr(Record, "best", property(lambda record: max(record.epochs)))
    stage2(campaign(weights, table), after_stage1)
    said, directory = summary(after_stage1, STAGE2), CampaignDirectory(after_stage1)
    assert said["kept"] == kept and said["gain"] == found.ratings.model_dump()
    files = [(place / "model.safetensors").read_bytes() for place in (directory.policy(), directory.policy("CT"))]
    cards = [load_policy(place, CPU).card for place in (directory.policy(), directory.policy("CT"))]
    assert (files[0] == files[1]) == (cards[0] == cards[1]) == (kept == "stage 1")


def test_a_modality_without_enough_ratings_keeps_stage_1s_policy(
    weights: Path, table: Path, after_stage1: Path
) -> None:
    config = campaign(weights, table, data={"modalities": ["CT", "MRI", "OCT"]})
    task = Task("rlhf-stage2", 2, "oct", "OCT")
    stage2(config, after_stage1, task=task)
    directory = CampaignDirectory(after_stage1)
    assert summary(after_stage1, task) == {"ratings": 0, "kept": "stage 1", "reason": "too few ratings"}
    weights_of = [(place / "model.safetensors").read_bytes() for place in (directory.policy(), directory.policy("OCT"))]
    assert weights_of[0] == weights_of[1]


def test_stage_2_asks_for_stage_1(weights: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rlhf-stage1 all"):
        stage2(campaign(weights, table), tmp_path)


# --- damaged copies, the generator's own images, pairs, and checkpoints that are kept


@pytest.fixture(scope="module")
def learning(weights: Path, table: Path) -> Config:
    """From everything that there is to learn from, and with everything kept."""
    folder = table.parent
    pairs = ["image_a,image_b,preferred,prompt"]
    answers = ["a", "same", "neither", "b"]
    pairs += [f"{n}.png,{n + 9}.png,{answers[n % 4]},CT: finding {n % 4}" for n in (4, 5, 6, 7, 8)]
    (folder / "pairs.csv").write_text("\n".join(pairs) + "\n")
    rows = ["path,Text,modality", *(f"{n}.png,CT: a picture {n},CT" for n in (5, 8, 14, 17))]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return campaign(
        weights,
        table,
        data={"table": str(folder / "metadata.csv"), "pairs_file": str(folder / "pairs.csv")},
        training={"max_epochs": 2, "checkpoints": {"save_frequency": 1, "keep": True}},
        selector={"artifact_detection": True, "sampled_prompts": 2},
        generation={"num_inference_steps": 3, "batch_size": 4},
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsyn.training.scorers.sources.ORIGINALS", 3)
    monkeypatch.setattr("medsyn.training.scorers.sources.KINDS_PER_IMAGE", 2)


def comparable(root: Path) -> dict[str, bytes]:
    """Everything that is made, whenever the run began."""
    return {re.sub(r"\d{8}-\d{6}", "TIME", name): content for name, content in contents(root / "work").items()}


@pytest.mark.usefixtures("few")
def test_a_run_that_learns_from_everything_ends_in_the_same_bytes_wherever_it_is_killed(
    learning: Config, weights: Path, tmp_path: Path
) -> None:
    unet = stable_diffusion.load_synthetic(str(weights), CPU).unet
    for root in (tmp_path / "whole", tmp_path / "killed"):
        unet.save_pretrained(CampaignDirectory(root).finetuned_unet("CT") / "unet")
    for stage in (stage1, stage2):
        stage(learning, tmp_path / "whole")
        with pytest.raises(Saved):
            stage(learning, tmp_path / "killed", StopAt(2, "damaged image"))
        with pytest.raises(KeyboardInterrupt):
            stage(learning, tmp_path / "killed", KillAt(7))
        stage(learning, tmp_path / "killed")
    assert comparable(tmp_path / "whole") == comparable(tmp_path / "killed")

    said = summary(tmp_path / "whole")
    assert said["pairs"] == 5 and said["selector"]["comparisons"]["rated"]["pairs"] >= 1
    second = summary(tmp_path / "whole", STAGE2)
    its = second["selector"]
    assert its["kept"] in ("stage 1", "stage 2") and its["gain_on_sampled"]["n"] == 2
    directory = CampaignDirectory(tmp_path / "whole")
    card = load_selector(directory.selector("CT"), CPU).card
    assert (card.sampling is not None) == (its["kept"] == "stage 2")
    assert {name: one.model_dump() for name, one in card.thresholds.items()} == second["thresholds"]
    assert second["thresholds"]["CT"]["samples"] == 2 and second["thresholds"]["CT"]["samples_passing"] is not None

    (run,) = (tmp_path / "whole/work/rlhf-stage1/all/checkpoints").iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["epoch_1", "epoch_2"]
    early = load_selector(run / "epoch_1" / "selector", CPU)
    assert early.card.evidence.auroc.value is not None and load_policy(run / "epoch_2" / "policy", CPU)
    assert disk.read_json(run / "epoch_1" / "selector" / PROVENANCE)["epoch"] == 1


@pytest.mark.usefixtures("few")
def test_stage_2_asks_for_the_generator(learning: Config, weights: Path, table: Path, after_stage1: Path) -> None:
    with pytest.raises(InputError, match="the task 'finetune ct' makes it"):
        stage2(learning, after_stage1)


@pytest.mark.parametrize("change", ["pair", "picture"])
@pytest.mark.usefixtures("few")
def test_other_pairs_or_originals_are_refused(learning: Config, tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(Path(learning.data.table).parent, tmp_path / "data")
    data = {"ratings_file": str(folder / "ratings.csv"), "pairs_file": str(folder / "pairs.csv")}
    data["table"] = str(folder / "metadata.csv")
    tree = learning.model_dump()
    config = validate({**tree, "data": {**tree["data"], **data}}, "test")
    with pytest.raises(Saved):
        stage1(config, tmp_path / "run", StopAt(1, "damaged image"))
        pytest.fail("it was not stopped")
    with pytest.raises(Saved):
        stage1(config, tmp_path / "run", StopAt(1))
    name = "pairs.csv" if change == "pair" else "metadata.csv"
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace(",same,", ",a,").replace("8.png,CT: a", "11.png,CT: a"))
    with pytest.raises(InputError, match=r"data\.pairs_file" if change == "pair" else r"data\.table"):
        stage1(config, tmp_path / "run")


# --- real images


def test_real_ratings_are_told_apart(shared_data: Path, tmp_path: Path) -> None:
    """Five modalities, 328 ratings, a scorer too small for anything but the quality metrics, one minute of nobody's."""
    scorer = {"image_size": 64, "patch_size": 16, "hidden_dim": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
    config = campaign(
        Path("embedded"),
        shared_data / "dev/ratings.csv",
        data={"resolution": 64, "modalities": ["OCT", "CT", "X-Ray", "MRI", "Fundus"]},
        training={"max_epochs": 12, "batch_size": 32},
        selector=scorer,
        policy_model=scorer,
    )
    stage1(config, tmp_path)
    said = summary(tmp_path)
    assert said["selector"]["auroc"] > 0.9
    assert json.dumps(said).isascii()
