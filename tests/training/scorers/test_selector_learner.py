"""What the Selector learns from besides ratings, and that no member learns from its own fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medsyn.models.selector import Selector
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.folds import NOBODY, Folds
from medsyn.training.scorers.learner import Step
from medsyn.training.scorers.lessons import Lessons, lessons_of
from medsyn.training.scorers.rated import RatedPairs
from medsyn.training.scorers.selector_learner import SelectorLearner
from tests.training.scorers.rated_sets import FOLDS, KEY, SECTION, rated_set

ROWS = np.arange(12)
# a is better; both are the same; both are bad
PAIRS = RatedPairs(
    np.array([1, 3, 5]),
    np.array([7, 9, 7]),
    np.zeros(3, dtype=int),
    np.array([1, 0.5, 1]),
    np.array([False, False, True]),
)


def comparisons(group: str = "0.png", severe: bool = True) -> Comparisons:
    """A grey image, a little noise on it, and a lot."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=(3, 32, 32))).float()
    pixels = torch.stack([(128 + noise * by).clamp(0, 255).to(torch.uint8) for by in (0, 8, 60)])
    return Comparisons(
        pixels=pixels,
        modality=np.full(3, "CT"),
        group=np.full(3, group),
        better=np.array([0, 0, 1]),
        worse=np.array([1, 2, 2]),
        kind=np.full(3, "noise"),
        severe=np.array([False, severe, severe]),
        weight=np.ones(3, dtype=np.float32),
    )


def lessons(folds: Folds = FOLDS, **changes: Any) -> Lessons:
    rated = rated_set(**changes)
    return lessons_of(rated, PAIRS, folds, [comparisons()], [comparisons("a prompt")])


def learner(its: Lessons) -> SelectorLearner:
    torch.manual_seed(0)
    made = SelectorLearner(Selector(SECTION), its, KEY)
    made.learn_statistics()
    return made


def test_everything_finds_its_place_in_one_pool_of_images() -> None:
    its = lessons(decoded=np.array([8]))
    assert len(its.pixels) == 16 and its.group[[0, 10, 13]].tolist() == ["0.png", "0.png", "a prompt"]
    assert (its.fold[10:13] == its.fold[0]).all(), "damaged copies are of their original's fold"
    assert its.better.tolist() == [1, 3, 10, 10, 11, 13, 13, 14]
    assert its.worse.tolist() == [7, 9, 11, 12, 12, 14, 15, 15]
    assert its.preference.tolist() == [1, 0.5, 1, 1, 1, 1, 1, 1]
    assert its.sampled.tolist() == [False] * 5 + [True] * 3
    pulls = dict(zip(its.pulls.image.tolist(), its.pulls.target.tolist(), strict=True))
    # the decoder's good image, two that experts call bad, an original and its severe damage, a severe sample: a sample
    # is not good for being well sampled
    assert pulls == {8: 1, 5: 0, 7: 0, 10: 1, 12: 0, 15: 0}
    assert its.familiar.tolist() == [True] * 11 + [False] * 2 + [True] * 3


def test_the_exam_asks_about_rated_images_and_about_pairs_that_one_member_has_not_seen() -> None:
    its = learner(lessons())
    assert its.exam.weight.astype(bool).sum() == 10
    rated = dict(zip(its._places[its.exam.rated].tolist(), its.exam.target[its.exam.rated].tolist(), strict=True))
    assert rated[0] == 0.5 and rated[2] == 1 and rated[3] == 0  # image 0 is rated 1 and 2
    kinds = its.exam.compared.kind.tolist()
    assert kinds.count("rated") == 2 and kinds.count("noise") == 3 and kinds.count("sampled noise") == 3


def test_a_member_learns_nothing_from_its_own_fold() -> None:
    its = rated_set()
    other = its.pixels.clone()
    other[::2] = 255 - other[::2]
    even = np.isin(its.image, np.arange(0, 10, 2))
    gradients = []
    for changes in ({}, {"pixels": other, "rating": np.where(even, 4 - its.rating, its.rating)}):
        made = learner(lessons_of(rated_set(**changes), PAIRS, FOLDS, [comparisons()], []))
        made.teach(Step(0, 1, ROWS))
        gradients.append([[weight.grad for weight in member.parameters()] for member in made.members])
    for before, after in zip(gradients[0][0], gradients[1][0], strict=True):
        torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-4)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients[0][1], gradients[1][1], strict=True))


def test_every_image_is_answered_by_the_member_of_its_fold() -> None:
    made = learner(lessons())
    answers = made.answers()
    for place in (0, 3, len(answers) - 1):
        image = made._places[place]
        pixels, metrics = made.images.seen(np.array([image]))
        own = made.members[made.lessons.fold[image]](pixels, metrics)
        assert answers[place] == pytest.approx(float(own), abs=1e-4)


def test_one_member_learns_from_everything_and_answers_nothing() -> None:
    alone = lessons(Folds(1, {}, 0))
    assert set(alone.fold.tolist()) == {NOBODY}
    made = learner(alone)
    assert len(made.exam.compared.better) == 0 and not made.exam.rated.any() and len(made.answers()) == 0
    assert float(made.teach(Step(0, 0, ROWS))) > 0


def test_it_learns_the_order_of_damage_that_nobody_rated() -> None:
    made = learner(lessons_of(rated_set(), RatedPairs.none(), FOLDS, [comparisons("1.png", severe=False)], []))
    optimizer = torch.optim.AdamW(made.members.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        made.teach(Step(step, step, ROWS))
        optimizer.step()
    with torch.no_grad():
        clean, little, much = made.members[0](*made.images.seen(np.array([10, 11, 12]))).tolist()
    assert clean > little + 1 and little > much + 1
