"""What the Policy learns from: rewards, wrong prompts, and never a row of a member's own fold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medsyn.models.policy import Policy
from medsyn.training.scorers.captions import Captioned, Texts, collect_texts
from medsyn.training.scorers.learner import Step
from medsyn.training.scorers.policy_learner import FALSE_PER_IMAGE, HELD_OUT_DRAWS, PolicyLearner
from medsyn.training.scorers.rated import RatedPairs, RatedSet
from tests.training.scorers.rated_sets import FOLDS, KEY, SECTION, rated_set

ROWS = np.arange(12)
KINDS = [f"{modality}: {finding}" for modality in ("CT", "MRI") for finding in ("mass", "cyst")]
PROMPTS = [f"{kind} in the {side} lung" for kind in KINDS for side in ("left", "right")]


def texts_of(rated: RatedSet) -> Texts:
    """The prompts of the rated set, and their near misses."""
    modality = rated.prompt_modality.tolist()

    def embed(every: Iterable[str]) -> Tensor:
        places = list(every)
        further = torch.randn(len(places), 6, generator=torch.Generator().manual_seed(1))
        return torch.cat([rated.pooled, further])[: len(places)]

    return collect_texts(dict(zip(PROMPTS[: len(modality)], modality, strict=True)), embed)


def captions(count: int = 4) -> Captioned:
    """Images of four groups that nobody rated, two of each fold."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return Captioned(
        pixels, 2 + np.arange(count), np.array([f"{9 - n}.png" for n in range(count)]), np.arange(count) % 8
    )


def learner(
    mismatch: bool = True, pairs: RatedPairs | None = None, captioned: Captioned | None = None, **changes: Any
) -> PolicyLearner:
    torch.manual_seed(0)
    policy, rated = Policy(SECTION, 6), rated_set(**changes)
    captioned = captions() if captioned is None else captioned
    taught = np.ones(len(rated.line), dtype=bool)
    return PolicyLearner(
        policy, rated, pairs or RatedPairs.none(), captioned, texts_of(rated), FOLDS, taught, KEY, mismatch
    )


def test_rewards_are_the_ratings_and_nothing_under_a_false_text() -> None:
    asked = learner().questions.lesson(np.array([0, 1, 2, 12]), 0)  # rated 1, 2, 3, and a captioned image
    assert asked.reward[:4].tolist() == [0, 0.5, 1, 1]
    assert asked.matched[:4].all() and not asked.matched[4:].any()
    assert set(asked.rows[4:].tolist()) == {1, 2, 12} and not asked.reward[4:].any()
    assert asked.images[asked.rows == 12].tolist() == [10] * int((asked.rows == 12).sum())
    assert (asked.weight == 1).all()


def test_a_good_image_is_also_asked_about_mirrored_under_its_own_text() -> None:
    policy = learner()
    asked = [policy.questions.lesson(ROWS, epoch) for epoch in range(20)]
    mirrored = sum(int(one.mirrored.sum()) for one in asked)
    assert 0.35 < mirrored / (20 * policy.rated.good.sum()) < 0.65
    for one in asked:
        own = policy.rated.prompt[one.rows]
        assert (one.prompts[one.mirrored] == own[one.mirrored]).all()
        assert (one.prompts[~one.matched & ~one.mirrored] != own[~one.matched & ~one.mirrored]).all()
    assert not policy.asked.mirrored.any()


def test_false_texts_are_of_the_epoch_and_the_line() -> None:
    questions, places = learner().questions, np.array([4, 5, 7])
    of_rows = ("line", "image", "prompt", "rating", "weight", "modality")
    part = {name: getattr(rated_set(), name)[places] for name in of_rows}
    one, other = questions.lesson(places, 3), learner(**part).questions.lesson(np.arange(3), 3)
    assert np.array_equal(one.prompts, other.prompts) and np.array_equal(one.mirrored, other.mirrored)
    assert not np.array_equal(one.prompts, questions.lesson(places, 4).prompts)


def test_in_the_exam_false_texts_count_as_one_and_are_the_same_in_every_stage() -> None:
    policy = learner(captioned=Captioned.none(32))
    asked = policy.asked
    assert asked.weight[~asked.matched].sum() == pytest.approx(policy.rated.good.sum())
    assert int((~asked.matched).sum()) == FALSE_PER_IMAGE * policy.rated.good.sum()
    policy.questions._key = (7, "another stage")
    assert np.array_equal(policy.questions.exam(ROWS, HELD_OUT_DRAWS).prompts, asked.prompts)


def test_without_mismatch_negatives_every_row_is_judged_once() -> None:
    assert learner(mismatch=False).asked.rows.tolist() == ROWS.tolist()


def test_all_captioned_images_are_seen_in_an_epoch() -> None:
    policy = learner(captioned=captions(24))
    drawn = [policy._drawn_captioned(Step(number, 0, ROWS[4 * number : 4 * number + 4])) for number in range(3)]
    assert sorted(np.concatenate(drawn).tolist()) == list(range(24))
    assert not len(learner(captioned=Captioned.none(32))._drawn_captioned(Step(0, 0, ROWS)))


def test_captions_alone_teach_what_a_text_says() -> None:
    """One half is bright, the left or the right one; no such image was ever rated."""
    count = 32
    pixels = torch.full((count, 3, 32, 32), 60, dtype=torch.uint8)
    for number in range(count):
        pixels[number, :, :, :16] += 120 * (number % 2)
        pixels[number, :, :, 16:] += 120 * (1 - number % 2)
        noise = torch.Generator().manual_seed(number)
        pixels[number] += torch.randint(0, 40, (3, 32, 32), generator=noise, dtype=torch.uint8)
    captioned = Captioned(pixels, np.arange(count), np.array([f"c{n}" for n in range(count)]), np.arange(count) % 2)
    policy = learner(captioned=captioned)
    policy.learn_statistics()
    policy._taught[:] = False
    optimizer = torch.optim.AdamW(policy.members.parameters(), lr=3e-3)
    for number in range(40):
        optimizer.zero_grad()
        policy.teach(Step(number, number, ROWS))
        optimizer.step()
    shown = pixels[:2].float() / 255
    with torch.no_grad():
        own = policy.members[0](shown, policy.pooled[[0, 1]])
        false = policy.members[0](shown, policy.pooled[[1, 0]])
        mirrored = policy.members[0](shown.flip(-1), policy.pooled[[0, 1]])
    assert (own > false + 1).all() and (own > mirrored + 1).all()


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
    policy = learner(pairs=pairs, captioned=Captioned.none(32))
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
