"""Which epoch is chosen, and that a fold's figures are not of the epoch that this fold chose."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.training.scorers.exam import Comparison, Exam, Record, cross_entropy


def exam(compared: Comparison | None = None) -> Exam:
    """Two folds of three good and three poor ones; one that is part of comparisons only, and one nobody can answer."""
    target = np.array([1, 1, 1, 0, 0, 0] * 2 + [0, 1], dtype=np.float64)
    fold = np.array([0] * 6 + [1] * 6 + [1, -1])
    weight = np.array([1.0] * 12 + [0, 1])
    groups = np.array([str(number) for number in range(14)])
    return Exam(target, weight, fold, groups, np.full(14, "CT"), compared or Comparison.none())


def answers(first: float, second: float) -> np.ndarray:
    """Right answers by these logits in either fold."""
    right = np.where(exam().target == 1, 1.0, -1.0)
    return np.concatenate([first * right[:6], second * right[6:12], [99.0, np.nan]])


def test_the_epoch_is_that_of_all_and_the_figures_of_a_fold_those_of_the_others_epoch() -> None:
    record = Record(exam(), 3)
    for epoch, logits in ((1, answers(1, 2)), (2, answers(3, 0.5)), (3, answers(2, 2.1))):
        record.add(epoch, logits)
    assert record.epochs == [1, 2, 3] and record.best == 3
    nested, chosen = record.nested()
    assert chosen == [3, 2]  # by fold 1 alone the third is best, by fold 0 alone the second
    assert nested[:6].tolist() == answers(2, 2.1)[:6].tolist()
    assert nested[6:12].tolist() == answers(3, 0.5)[6:12].tolist()
    assert np.isnan(nested[13])


def test_with_equal_losses_the_first_epoch_is_kept_and_before_training_counts_only_if_asked_about() -> None:
    record = Record(exam(), 2)
    record.add(1, answers(1, 1))
    record.add(2, answers(1, 1))
    assert record.best == 1
    record.add(0, answers(5, 5))
    assert record.best == 0


def test_what_is_compared_only_or_cannot_be_answered_counts_for_nothing_by_itself() -> None:
    its, logits = exam(), answers(1, 1)
    other = logits.copy()
    other[12] = -7.0
    assert np.array_equal(its.losses(logits), its.losses(other))
    assert its.losses(logits)[:, 1].tolist() == [6, 6]


def test_comparisons_add_their_own_loss() -> None:
    pairs = Comparison(np.array([0, 7]), np.array([3, 12]), np.array([1.0, 0.5]), np.ones(2), np.array(["a", "b"]))
    logits = answers(2, 2)
    sums = exam(pairs).losses(logits)
    assert sums[0, 2] == pytest.approx(np.log1p(np.exp(-4.0))) and sums[1, 3] == 1
    assert sums[1, 2] == pytest.approx(float(cross_entropy(logits[7] - logits[12], np.array(0.5))))
    record = Record(exam(pairs), 1)
    record.add(1, logits)
    assert record.loss(1) > float(np.mean(exam().entropy(logits)[:12]))


def test_nothing_is_known_where_nothing_is_left_out() -> None:
    alone = Exam(np.ones(2), np.ones(2), np.full(2, -1), np.array(["a", "b"]), np.full(2, "CT"), Comparison.none())
    record = Record(alone, 2)
    record.add(1, np.full(2, np.nan))
    assert record.epochs == []
