"""What the Policy learns from: rewards, wrong prompts, and never a row of a member's own fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medsyn.models.policy import Policy
from medsyn.training.scorers.learner import Step
from medsyn.training.scorers.policy_learner import HELD_OUT_DRAWS, PolicyLearner, wrong_prompt
from medsyn.training.scorers.rated import RatedPairs
from tests.training.scorers.rated_sets import FOLDS, KEY, SECTION, rated_set

ROWS = np.arange(12)


def learner(mismatch: bool = True, pairs: RatedPairs | None = None, **changes: Any) -> PolicyLearner:
    torch.manual_seed(0)
    policy, rated = Policy(SECTION, 6), rated_set(**changes)
    taught = np.ones(len(rated.line), dtype=bool)
    return PolicyLearner(policy, rated, pairs or RatedPairs.none(), FOLDS, taught, KEY, mismatch)


def test_rewards_are_the_ratings_and_nothing_under_a_wrong_prompt() -> None:
    asked = learner()._ask(np.array([0, 1, 2]), KEY, 1)  # rated 1, 2, 3
    assert asked.reward.tolist() == [0, 0.5, 1, 0, 0]  # the last two: the good ones under wrong prompts
    assert asked.rows.tolist() == [0, 1, 2, 1, 2] and asked.matched.tolist() == [True] * 3 + [False] * 2


def test_several_wrong_prompts_count_as_one_and_are_the_same_in_every_stage() -> None:
    policy = learner()
    asked = policy.asked
    good = int((~asked.matched).sum()) / HELD_OUT_DRAWS
    assert good == policy.rated.good.sum() and asked.weight[~asked.matched].sum() == pytest.approx(good)
    assert len(set(asked.prompts[(asked.rows == 1) & ~asked.matched].tolist())) > 1
    own = asked.prompts[asked.matched] == policy.rated.prompt[asked.rows[asked.matched]]
    assert own.all() and (asked.prompts[~asked.matched] != policy.rated.prompt[asked.rows[~asked.matched]]).all()
    policy._key = (7, "another stage")
    assert np.array_equal(policy._ask(ROWS, ("held out",), HELD_OUT_DRAWS).prompts, asked.prompts)


def test_without_mismatch_negatives_every_row_is_judged_once() -> None:
    assert learner(mismatch=False).asked.rows.tolist() == ROWS.tolist()


def test_a_table_with_one_prompt_has_no_wrong_ones() -> None:
    only = {"pooled": torch.randn(1, 6), "prompt": np.zeros(12, dtype=int), "prompt_modality": np.array(["CT"])}
    assert learner(**only).asked.matched.all()


def test_a_wrong_prompt_is_never_the_right_one_and_half_of_the_time_of_the_same_modality() -> None:
    rated = rated_set()
    chosen = [(row, wrong_prompt(rated, KEY, epoch, row)) for epoch in range(60) for row in range(12)]
    assert all(prompt != rated.prompt[row] for row, prompt in chosen)
    same = np.mean([rated.prompt_modality[prompt] == rated.modality[row] for row, prompt in chosen])
    assert 0.44 < same < 0.56
    assert len({prompt for row, prompt in chosen if row == 0}) == 7
    assert wrong_prompt(rated, KEY, 5, 2) == wrong_prompt(rated, KEY, 5, 2)
    assert len({wrong_prompt(rated, KEY, epoch, 2) for epoch in range(20)}) > 1


def test_a_wrong_prompt_is_found_where_only_one_modality_has_prompts() -> None:
    rated = rated_set(prompt_modality=np.array(["CT"] * 8), modality=np.array(["CT"] * 12))
    assert {wrong_prompt(rated, KEY, epoch, 0) for epoch in range(80)} == set(range(1, 8))


def test_a_row_is_the_same_row_in_a_part_of_the_table() -> None:
    """Stage 2 sees one modality's rows only; what it reports must compare with stage 1's."""
    whole, places = rated_set(), np.array([4, 5, 6, 7, 9])
    part = rated_set(
        **{name: getattr(whole, name)[places] for name in ("line", "image", "prompt", "rating", "weight", "modality")}
    )
    assert [wrong_prompt(part, KEY, 0, row) for row in range(5)] == [wrong_prompt(whole, KEY, 0, row) for row in places]


def test_a_member_learns_nothing_from_its_own_fold() -> None:
    """With other pictures, ratings and pairs in its fold it takes the same step, from the same statistics."""
    pairs = RatedPairs(np.array([1, 2]), np.array([3, 4]), np.array([1, 2]), np.ones(2), np.zeros(2, dtype=bool))
    its = np.isin(rated_set().image, np.arange(0, 10, 2))  # member 0 is trained without the even images
    other = rated_set().pixels.clone()
    other[::2] = 255 - other[::2]
    changes = {"pixels": other, "rating": np.where(its, 4 - rated_set().rating, rated_set().rating)}
    # the good rows among the others meet the same wrong prompts
    gradients = []
    for its_changes in ({}, changes):
        one = learner(pairs=pairs, **its_changes)
        one.learn_statistics()
        one.teach(Step(0, 1, ROWS))
        gradients.append([weight.grad for member in one.members for weight in member.parameters()])
    count = len(gradients[0]) // 2
    for place, (before, after) in enumerate(zip(*gradients, strict=True)):
        if place < count:
            torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-4)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(*(one[count:] for one in gradients), strict=True))


def test_every_question_is_answered_by_the_member_of_its_fold() -> None:
    policy = learner()
    policy.learn_statistics()
    answers = policy.answers()
    for place in (0, 1, 5, 17):
        row, prompt = policy.asked.rows[place], policy.asked.prompts[place]
        image = policy.rated.image[row]
        pixels, metrics = policy.images.seen(np.array([image]))
        logit = policy.members[image % 2](pixels, policy.pooled[prompt : prompt + 1], metrics)
        assert answers[place] == pytest.approx(float(logit), abs=1e-4)


def test_experts_pairs_teach_the_policy_which_image_shows_the_prompt_better() -> None:
    pairs = RatedPairs(np.array([1]), np.array([3]), np.array([1]), np.ones(1), np.zeros(1, dtype=bool))
    policy = learner(pairs=pairs)
    policy.learn_statistics()
    optimizer = torch.optim.AdamW(policy.members.parameters(), lr=3e-3)

    def margin() -> float:
        first, second = policy.answers()[-2:]
        return float(first - second)

    before = margin()
    for step in range(30):
        policy._taught[:] = False  # of pairs alone
        optimizer.zero_grad()
        policy.teach(Step(step, step, ROWS))
        optimizer.step()
    assert policy.exam.compared.better.tolist() == [len(policy.asked.rows)]
    assert margin() == before  # both are odd: only member 1 may answer, and it was not trained on them
    with torch.no_grad():
        trained = policy.members[0](*policy.images.seen(np.array([1, 3]))[:1], policy.pooled[[1, 1]])
    assert float(trained[0] - trained[1]) > 2
