"""What the scorers learn from: the loss, the wrong prompts, the augmentation and the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medsyn.config import ScorerSection
from medsyn.models.policy import Policy
from medsyn.models.selector import Selector
from medsyn.training.scorers.loss import (
    HELD_OUT_DRAWS,
    Judgements,
    Learner,
    advantage_loss,
    augment,
    cross_entropy,
    wrong_prompt,
)
from medsyn.training.scorers.rated import RatedSet

SECTION = ScorerSection(image_size=32, patch_size=16, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16)
KEY = (0, "test")


def judgements(logits: Tensor, reward: Tensor, weight: Tensor) -> Judgements:
    rows = np.arange(len(logits))
    return Judgements(logits, reward, weight, rows, rows, rows >= 0)


def rated_set(**changes: Any) -> RatedSet:
    """Twelve ratings of ten images, four prompts each of CT and MRI."""
    generator = torch.Generator().manual_seed(0)
    fields: dict[str, Any] = {
        "pixels": torch.randint(0, 256, (10, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "pooled": torch.randn(8, 6, generator=generator),
        "line": np.arange(2, 14),
        "image": np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]),
        "prompt": np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 4, 0, 1]),
        "rating": np.array([1, 2, 3] * 4),
        "weight": np.ones(12, dtype=np.float32),
        "held_out": np.zeros(12, dtype=bool),
        "modality": np.array(["CT"] * 4 + ["MRI"] * 4 + ["CT", "MRI", "CT", "CT"]),
        "prompt_modality": np.array(["CT"] * 4 + ["MRI"] * 4),
        "counts": {},
    }
    return RatedSet(**{**fields, **changes})


def learner(kind: str, mismatch: bool = True, **changes: Any) -> Learner:
    torch.manual_seed(0)
    scorer = Selector(SECTION) if kind == "selector" else Policy(SECTION, 6)
    return Learner(scorer, rated_set(**changes), KEY, mismatch)


def test_the_advantage_loss_has_the_gradient_of_soft_label_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, generator=generator) * 5
    reward = torch.randint(0, 3, (200,), generator=generator) / 2
    weight = torch.rand(200, generator=generator) + 0.1
    gradients = []
    for loss in (advantage_loss, cross_entropy):
        leaf = logits.clone().requires_grad_()
        loss(judgements(leaf, reward, weight)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)


def test_the_advantage_loss_is_what_its_name_says() -> None:
    logits, reward = torch.tensor([0.3, -2.0, 1.5]), torch.tensor([1.0, 0.5, 0.0])
    score = logits.sigmoid()
    expected = -((reward - score) * (score.log() - (1 - score).log())).mean()
    torch.testing.assert_close(advantage_loss(judgements(logits, reward, torch.ones(3))), expected)


@pytest.mark.parametrize("logit", [-60.0, 60.0])
def test_the_loss_of_a_certain_scorer_is_finite_and_pushes_back(logit: float) -> None:
    leaf = torch.tensor([logit], requires_grad=True)
    loss = advantage_loss(judgements(leaf, torch.tensor([float(logit < 0)]), torch.ones(1)))
    loss.backward()
    assert bool(loss.isfinite()) and float(leaf.grad.sign()) == (1 if logit > 0 else -1)  # type: ignore[union-attr]


def test_training_ranks_images_by_rating_and_not_backwards() -> None:
    """The published |R - s| log s makes poor images score highest; its sign is what this test is about."""
    logits = torch.zeros(3, requires_grad=True)
    reward = torch.tensor([0.0, 0.5, 1.0])
    for _ in range(200):
        loss = advantage_loss(judgements(logits, reward, torch.ones(3)))
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    poor, acceptable, excellent = logits.sigmoid().tolist()
    assert poor < 0.1 and acceptable == pytest.approx(0.5, abs=0.01) and excellent > 0.9


def test_a_rating_is_weighted_in_the_loss_and_not_in_the_reward() -> None:
    plain, weighted = learner("policy"), learner("policy", weight=np.linspace(0.1, 3, 12, dtype=np.float32))
    rows = np.arange(12)
    one, other = plain.judge(rows, 0), weighted.judge(rows, 0)
    assert torch.equal(one.reward, other.reward)
    assert other.weight[:12].tolist() == pytest.approx(np.linspace(0.1, 3, 12).tolist())
    assert advantage_loss(one) != advantage_loss(other)


def test_a_row_of_weight_0_teaches_nothing() -> None:
    logits = torch.zeros(2, requires_grad=True)
    advantage_loss(judgements(logits, torch.ones(2), torch.tensor([0.0, 1.0]))).backward()
    assert logits.grad is not None and logits.grad[0] == 0 and logits.grad[1] != 0


def test_rewards_of_both_scorers() -> None:
    rows = np.array([0, 1, 2])  # rated 1, 2, 3
    assert learner("selector").judge(rows, 0).reward.tolist() == [0, 1, 1]
    policy = learner("policy").judge(rows, 0)
    assert policy.reward.tolist() == [0, 0.5, 1, 0, 0]  # the last two: the good ones under wrong prompts
    assert policy.rows.tolist() == [0, 1, 2, 1, 2] and policy.matched.tolist() == [True] * 3 + [False] * 2
    assert policy.good.tolist() == [False, True, True, False, False]


def test_without_mismatch_negatives_every_row_is_judged_once() -> None:
    assert learner("policy", mismatch=False).judge(np.arange(12), 0).rows.tolist() == list(range(12))


def test_a_table_with_one_prompt_has_no_wrong_ones() -> None:
    only = {"pooled": torch.randn(1, 6), "prompt": np.zeros(12, dtype=int), "prompt_modality": np.array(["CT"])}
    lonely = learner("policy", **only)
    assert lonely.judge(np.arange(12), 0).matched.all()


def test_a_wrong_prompt_is_never_the_right_one_and_half_of_the_time_of_the_same_modality() -> None:
    rated = rated_set()
    chosen = [(row, wrong_prompt(rated, KEY, epoch, row)) for epoch in range(60) for row in range(12)]
    assert all(prompt != rated.prompt[row] for row, prompt in chosen)
    same = np.mean([rated.prompt_modality[prompt] == rated.modality[row] for row, prompt in chosen])
    assert 0.44 < same < 0.56
    assert len({prompt for row, prompt in chosen if row == 0}) == 7


def test_a_wrong_prompt_is_found_where_only_one_modality_has_prompts() -> None:
    rated = rated_set(prompt_modality=np.array(["CT"] * 8), modality=np.array(["CT"] * 12))
    assert {wrong_prompt(rated, KEY, epoch, 0) for epoch in range(80)} == set(range(1, 8))


def test_wrong_prompts_and_augmentation_are_functions_of_seed_epoch_and_line() -> None:
    rated = rated_set()
    pixels = rated.pixels.float() / 255
    whole = augment(pixels, KEY, 3, np.arange(10), mirror=True)
    assert torch.equal(whole[4:7], augment(pixels[4:7], KEY, 3, np.arange(4, 7), mirror=True))
    assert not torch.equal(whole, augment(pixels, KEY, 4, np.arange(10), mirror=True))
    assert not torch.equal(whole, augment(pixels, (1, "test"), 3, np.arange(10), mirror=True))
    assert wrong_prompt(rated, KEY, 5, 2) == wrong_prompt(rated, KEY, 5, 2)
    assert len({wrong_prompt(rated, KEY, epoch, 2) for epoch in range(20)}) > 1


def test_no_prompt_ever_meets_a_mirrored_image() -> None:
    """Prompts say left and right: a bright left half must stay on the left for the Policy."""
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., :16] = 1
    straight = torch.cat([augment(pixels, KEY, epoch, np.array([0]), mirror=False) for epoch in range(40)])
    mirrored = torch.cat([augment(pixels, KEY, epoch, np.array([0]), mirror=True) for epoch in range(40)])
    assert bool((straight[..., :8].mean(dim=(1, 2, 3)) > straight[..., 24:].mean(dim=(1, 2, 3))).all())
    on_the_left = mirrored[..., :8].mean(dim=(1, 2, 3)) > mirrored[..., 24:].mean(dim=(1, 2, 3))
    assert 8 < int(on_the_left.sum()) < 32


def test_augmentation_stays_small_and_in_range() -> None:
    coarse = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = functional.interpolate(coarse, (64, 64), mode="bilinear").expand(1, 3, -1, -1)
    for epoch in range(20):
        copy = augment(pixels, KEY, epoch, np.array([0]), mirror=False)
        assert copy.shape == pixels.shape and float(copy.min()) >= 0 and float(copy.max()) <= 1
        assert float((copy - pixels).abs().mean()) < 0.15


def test_held_out_rows_are_judged_the_same_every_time_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = learner("policy")
    first = policy.judge_held_out(np.arange(12))
    monkeypatch.setattr("medsyn.training.scorers.loss.TOGETHER", 5)
    policy.key = (7, "another stage")
    second = policy.judge_held_out(np.arange(12))
    assert first is not None and second is not None
    assert sorted(zip(first.rows, first.prompts, strict=True)) == sorted(zip(second.rows, second.prompts, strict=True))
    assert np.sort(first.scores) == pytest.approx(np.sort(second.scores), abs=1e-5)
    assert policy.judge_held_out(np.arange(0)) is None


def test_held_out_images_meet_several_wrong_prompts_in_training_proportion() -> None:
    policy = learner("policy")
    judged, trained = policy.judge_held_out(np.arange(12)), policy.judge(np.arange(12), 0)
    assert judged is not None
    assert len(judged.rows) == HELD_OUT_DRAWS * len(trained.rows)
    assert judged.matched.mean() == trained.matched.mean()
    assert len(set(judged.prompts[(judged.rows == 1) & ~judged.matched])) > 1
    own = judged.prompts[judged.matched] == policy.rated.prompt[judged.rows[judged.matched]]
    assert own.all() and (judged.prompts[~judged.matched] != policy.rated.prompt[judged.rows[~judged.matched]]).all()


def test_a_row_is_the_same_row_in_a_part_of_the_table() -> None:
    """Stage 2 sees one modality's rows only; what it reports must compare with stage 1's."""
    whole, places = rated_set(), np.array([4, 5, 6, 7, 9])
    names = ("line", "image", "prompt", "rating", "weight", "held_out", "modality")
    part = rated_set(**{name: getattr(whole, name)[places] for name in names})
    assert [wrong_prompt(part, KEY, 0, row) for row in range(5)] == [wrong_prompt(whole, KEY, 0, row) for row in places]


def test_statistics_come_from_the_given_rows_alone() -> None:
    policy = learner("policy")
    policy.learn_statistics(np.array([0, 1, 2]))
    torch.testing.assert_close(policy.scorer.image.standardise.mean, policy.metrics[:3].mean(dim=0))
    torch.testing.assert_close(policy.scorer.standardise_text.mean, policy.rated.pooled[:3].mean(dim=0))
