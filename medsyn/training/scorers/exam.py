"""What an ensemble is judged by: questions, each answered by the one member that was not trained on its group.

The epoch is chosen by these answers. So that a figure is not of the very answers that chose it, what is reported of a
fold is of the epoch that the other folds would have chosen (nested cross-validation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """P comparisons between the questions of an exam, by their places in it."""

    better: np.ndarray  # int64 [P]
    worse: np.ndarray  # int64 [P]
    preference: np.ndarray  # float64 [P], 1 or 0.5
    weight: np.ndarray  # float64 [P]
    kind: np.ndarray  # str [P]

    @classmethod
    def none(cls) -> Comparison:
        """No comparisons."""
        nothing, numbers = np.zeros(0, dtype=np.int64), np.zeros(0)
        return cls(nothing, nothing, numbers, numbers, np.zeros(0, dtype=str))


@dataclass(frozen=True)
class Exam:
    """M questions, in the order of the answers."""

    target: np.ndarray  # float64 [M], 0..1
    weight: np.ndarray  # float64 [M]; 0: the question is part of comparisons only
    fold: np.ndarray  # int64 [M]; `NOBODY` where no member can answer
    group: np.ndarray  # str [M]
    modality: np.ndarray  # str [M]
    compared: Comparison

    def __len__(self) -> int:
        return len(self.target)

    @property
    def rated(self) -> np.ndarray:
        """bool [M]: what experts have said something about, and a member can answer."""
        return (self.weight > 0) & (self.fold >= 0)

    def losses(self, answers: np.ndarray) -> np.ndarray:
        """Cross-entropy of ratings and of comparisons, as sums and their weights by fold: [folds, 4].

        Args:
            answers: logits [M].
        """
        folds = int(self.fold.max()) + 1 if len(self.fold) else 0
        sums = np.zeros((max(folds, 0), 4))
        rated, pairs = self.rated, self.compared
        entropy = self.entropy(answers)
        np.add.at(sums, (self.fold[rated], 0), (self.weight * entropy)[rated])
        np.add.at(sums, (self.fold[rated], 1), self.weight[rated])
        if len(pairs.better) and folds:
            place = self.fold[pairs.better]
            np.add.at(sums, (place, 2), pairs.weight * self.pair_entropy(answers))
            np.add.at(sums, (place, 3), pairs.weight)
        return sums

    def entropy(self, answers: np.ndarray) -> np.ndarray:
        """The cross-entropy of every question, [M], given its answer."""
        return cross_entropy(answers, self.target)

    def pair_entropy(self, answers: np.ndarray) -> np.ndarray:
        """The cross-entropy of every comparison, [P]."""
        pairs = self.compared
        return cross_entropy(answers[pairs.better] - answers[pairs.worse], pairs.preference)


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of targets 0..1, [N], given logits [N]; never infinite."""
    with np.errstate(invalid="ignore"):  # NaN of what nobody could answer stays NaN
        return np.asarray(np.logaddexp(0, logits) - target * logits)


def total(sums: np.ndarray) -> float:
    """The mean loss from sums [folds, 4]: of the ratings, plus that of the comparisons."""
    rated, weight, compared, pairs = sums.sum(axis=0)
    return float((rated / weight if weight else 0.0) + (compared / pairs if pairs else 0.0))


class Record:
    """The answers after every epoch so far, and what they say about which epoch is best."""

    def __init__(self, exam: Exam, epochs: int) -> None:
        """Of `epochs`; epoch 0 is before training, and counts only where it is filled in."""
        self.exam = exam
        self.answers = np.full((epochs + 1, len(exam)), np.nan, dtype=np.float32)
        self._losses: dict[int, np.ndarray] = {}

    def add(self, epoch: int, answers: np.ndarray) -> None:
        """Put down the answers, logits [M], after an epoch."""
        self.answers[epoch] = answers

    def only(self, epoch: int) -> Record:
        """What it says of one epoch alone."""
        one = Record(self.exam, epoch)
        one.add(epoch, self.answers[epoch])
        return one

    @property
    def epochs(self) -> list[int]:
        """Those with answers."""
        return [epoch for epoch, answers in enumerate(self.answers) if len(answers) and not np.isnan(answers).all()]

    def loss(self, epoch: int) -> float:
        """The mean loss after an epoch, over all folds."""
        return total(self._sums(epoch))

    @property
    def best(self) -> int:
        """The epoch with the least loss; the first of equals."""
        return min(self.epochs, key=lambda epoch: (self.loss(epoch), epoch))

    def nested(self) -> tuple[np.ndarray, list[int]]:
        """The answers [M], each of the epoch that the other folds choose, and that epoch for each fold."""
        answers, chosen = np.full(len(self.exam), np.nan, dtype=np.float64), []
        for fold in range(int(self.exam.fold.max(initial=-1)) + 1):
            others = {epoch: total(np.delete(self._sums(epoch), fold, axis=0)) for epoch in self.epochs}
            chosen.append(min(others, key=lambda epoch: (others[epoch], epoch)))
            its = self.exam.fold == fold
            answers[its] = self.answers[chosen[-1]][its]
        return answers, chosen

    def _sums(self, epoch: int) -> np.ndarray:
        if epoch not in self._losses:
            self._losses[epoch] = self.exam.losses(self.answers[epoch].astype(np.float64))
        return self._losses[epoch]
