"""The judge: it finds what is better, says what it knows nothing of, and is not taken in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from medsyn.training.alignment import judge
from medsyn.training.alignment.judge import Judge, Known, Look, Seen, covered, gains, nearer, similarities

SIZE, TEXTS = 30, 6


def images(count: int, shift: float, rng: np.random.Generator, texts: np.ndarray | None = None) -> Seen:
    """Images whose features have `shift` in the first 5 of 20 places, and their text in others."""
    features = rng.normal(size=(count, 20)).astype(np.float32) * 0.5
    features[:, :5] += shift
    if texts is not None:
        features[:, 10 : 10 + texts.shape[1]] += 2 * texts
    return Seen(features, rng.random((count, 8, 8)).astype(np.float32))


def judge_of(informed: bool = True, held_out: int = SIZE) -> tuple[Judge, np.ndarray]:
    """A judge of images of `SIZE` prompts; good ones are at shift 0, poor ones at 3, if it is `informed`."""
    rng = np.random.default_rng(0)
    which = np.arange(held_out) % 3
    texts = np.eye(TEXTS)[which].astype(np.float32)
    real = images(held_out, 0.0, rng, texts if informed else None)
    good = np.arange(24) % 2 == 0
    rated = np.concatenate([images(1, 0.0 if one or not informed else 3.0, rng).features for one in good])
    known = Known(
        real,
        np.ones(held_out, dtype=bool),
        texts,
        [str(k) for k in range(held_out)],
        rated,
        good,
        [str(k) for k in range(24)],
    )
    asked = np.eye(TEXTS)[np.arange(SIZE) % 3].astype(np.float32)
    return Judge(known, asked, 0), asked


def test_what_is_better_is_found_in_all_that_it_knows() -> None:
    rng = np.random.default_rng(1)
    its, asked = judge_of()
    assert its.notes["decides"] == ["distance", "quality", "prompt"]
    wrong = its.look(images(SIZE, 3.0, rng, np.roll(asked, 1, axis=1)))
    right = its.look(images(SIZE, 0.0, rng, asked))
    rows = np.arange(SIZE)
    assert all(low > 0 for _, low, _, _ in gains(wrong, right, rows, 0).values())
    assert all(high < 0 for _, _, high, _ in gains(right, wrong, rows, 0).values())


def test_what_is_no_better_is_seldom_found_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one of forty cases by chance: 60 here."""
    monkeypatch.setattr(judge, "RESAMPLES", 60)
    rng = np.random.default_rng(2)
    its, asked = judge_of()
    looks = [its.look(images(SIZE, 0.0, rng, asked)) for _ in range(21)]
    found = [gains(one, other, np.arange(SIZE), 0) for one, other in pairwise(looks)]
    assert sum(low > 0 for each in found for _, low, _, _ in each.values()) <= 5


def test_a_regression_that_is_not_better_than_chance_decides_nothing() -> None:
    its, _ = judge_of(informed=False)
    assert its.notes["decides"] == ["distance"]
    assert its.notes["quality"]["auroc"][0] is not None
    assert its.look(images(SIZE, 0.0, np.random.default_rng(3))).quality is None


def test_with_few_real_images_there_is_no_distance() -> None:
    its, _ = judge_of(held_out=judge.FEWEST - 1)
    assert "distance" not in its.notes["decides"]


@pytest.mark.parametrize("examples", [SIZE, judge.FEWEST - 1])
def test_poor_real_images_are_nothing_to_be_near_to(examples: int) -> None:
    """Where enough others are there: a distance to a few images says nothing."""
    its, _ = judge_of()
    known = replace(its.known, example=np.arange(SIZE) < examples)
    assert Judge(known, its.texts, 0).notes["good_real_images"] == SIZE
    some = replace(its.known, example=np.arange(SIZE) < judge.FEWEST)
    assert Judge(some, its.texts, 0).notes["good_real_images"] == judge.FEWEST


def test_the_distance_is_the_unbiased_one() -> None:
    """Of two samples of one distribution it is 0 on average, however small they are."""
    rng = np.random.default_rng(5)
    values = []
    for _ in range(200):
        first, second = (rng.normal(size=(10, 4)) for _ in range(2))
        values.append(judge.Distances.between(first, second).of(np.arange(10)[None])[0])
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_copies_of_one_image_are_neither_diverse_nor_all_there_is() -> None:
    rng = np.random.default_rng(6)
    real = rng.normal(size=(40, 3))
    same = np.repeat(real[:1], 40, axis=0) + 1e-3 * rng.normal(size=(40, 3))
    few, most = covered(same, real), covered(rng.normal(size=(40, 3)), real)
    assert few is not None and most is not None
    assert few.mean() < 0.1 < 0.6 < most.mean()
    assert covered(same[:3], real) is None
    small = rng.random((6, 16, 16)).astype(np.float32)
    assert similarities(np.repeat(small[:1], 6, axis=0)) == pytest.approx(1)
    assert similarities(small).mean() < 0.3


def test_nearer_is_a_half_by_chance_and_texts_that_are_equal_do_not_count() -> None:
    texts = np.eye(4)[[0, 1, 2, 3, 0, 1]]
    assert nearer(texts, texts).tolist() == [1.0] * 6
    assert nearer(np.zeros((6, 4)), texts).tolist() == [0.5] * 6
    assert nearer(np.roll(texts, 1, axis=1), texts).max() < 1
    one = np.repeat(texts[:1], 3, axis=0)  # a campaign of one prompt: against those of the held-out images
    assert nearer(one, one, texts).tolist() == [1.0] * 3


def test_a_look_says_what_it_does_not_know() -> None:
    look = Look(None, None, None, np.full(8, 0.4), np.arange(4) > 1)
    assert look.figures(np.arange(8), 0).keys() == {"recall", "diversity"}
    assert gains(look, look, np.arange(8), 0) == {}
