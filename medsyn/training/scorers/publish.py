"""From trained members to a scorer that is calibrated, knows what is familiar to it, and carries its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsyn.models.ensemble import Ensemble
from medsyn.models.scores import Card, Evidence, Interval, Threshold
from medsyn.training.scorers.calibration import (
    Line,
    calibrated,
    cross_fitted,
    fit_lines,
    lines_of,
    set_calibration,
    set_familiarity,
)
from medsyn.training.scorers.evidence import evidence, interval, weighted_mean
from medsyn.training.scorers.exam import Exam, Record, cross_entropy
from medsyn.training.scorers.learner import Learner
from medsyn.training.scorers.report import describe_scorer, win
from medsyn.training.scorers.thresholds import GENERATED, Seen, thresholds


@dataclass(frozen=True)
class Honest:
    """What is known of a scorer from answers about unseen groups, once the epochs are chosen."""

    answers: np.ndarray  # float64 [M], logits
    chosen: list[int]  # the epoch of each fold
    scores: np.ndarray  # float64 [M], calibrated without the question's fold


def judge(exam: Exam, record: Record, modalities: Sequence[str], before: Sequence[Line] | None) -> Honest:
    """What a record says, honestly; NaN for what nobody could answer."""
    answers, chosen = record.nested() if record.epochs else (np.full(len(exam), np.nan), [])
    return Honest(answers, chosen, cross_fitted(answers, exam, modalities, before))


def finish(
    scorer: Ensemble,
    learner: Learner,
    record: Record,
    images: tuple[np.ndarray, np.ndarray, np.ndarray],
    before: Sequence[Line] | None = None,
    sampling: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Calibrate a scorer, say on its card what is known of it, and describe it for the summary.

    Args:
        scorer: its card names the modalities; its members are those of the best epoch.
        learner: what trained it.
        record: its answers after every epoch.
        images: metrics [I, F], modality [I] and group [I] of what it was trained on.
        before: lines of the calibration that it comes with, if it was calibrated before.
        sampling: for the card.
    """
    exam, modalities = learner.exam, scorer.card.modalities
    honest = judge(exam, record, modalities, before)
    rated = exam.rated & ~np.isnan(honest.scores)
    lines = fit_lines(honest.answers, exam, rated, modalities, before)
    set_calibration(scorer, lines)
    set_familiarity(scorer, *images)
    found = _thresholds(learner, honest.answers, lines, modalities, modalities)
    scorer.card = Card(
        modalities=modalities,
        thresholds=found,
        evidence=evidence(honest.scores[rated], exam.target[rated], exam.modality[rated], exam.group[rated])
        if rated.any()
        else Evidence(),
        sampling=sampling,
    )
    return describe_scorer(learner, record, honest.chosen, honest.scores)


def set_threshold(scorer: Ensemble, learner: Learner, record: Record, modality: str) -> Threshold | None:
    """Choose a modality's threshold again, for a scorer as it was before training (epoch 0): more is known now."""
    names, lines = scorer.card.modalities, lines_before(scorer)
    found = _thresholds(learner, record.answers[0].astype(np.float64), lines, names, [modality])
    scorer.card = scorer.card.model_copy(update={"thresholds": {**scorer.card.thresholds, **found}})
    return found.get(modality)


def _thresholds(
    learner: Learner, answers: np.ndarray, lines: Sequence[Line], modalities: Sequence[str], wanted: Sequence[str]
) -> dict[str, Threshold]:
    """Those of the modalities `wanted`; `lines` are of `modalities`."""
    exam, origin = learner.exam, learner.origin
    if origin is None:
        return {}
    asked = (exam.rated | (origin > GENERATED)) & ~np.isnan(answers)
    scores = calibrated(answers, exam.modality, lines, modalities)
    good = exam.rated & (exam.target >= 0.5)
    return thresholds(Seen(scores, good, origin, exam.modality, exam.fold).at(asked), wanted)


@dataclass(frozen=True)
class Gain:
    """By how much an ensemble is better after further training, on groups that its members do not know."""

    ratings: Interval  # of the cross-entropy, in nats; above 0: better
    sampled: Interval  # of the share of sampled comparisons in order


def gain(exam: Exam, record: Record, modalities: Sequence[str], lines: Sequence[Line]) -> Gain:
    """From before training (epoch 0) to the chosen epoch, both calibrated without the fold in question."""
    after = judge(exam, record, modalities, lines)
    before = cross_fitted(record.answers[0].astype(np.float64), exam, modalities, lines)
    losses = [cross_entropy(_logit(scores), exam.target) for scores in (before, after.scores)]
    rated, pairs = np.flatnonzero(exam.rated), exam.compared
    its = np.flatnonzero(np.char.startswith(pairs.kind, "sampled ")) if len(pairs.kind) else np.zeros(0, dtype=np.int64)
    won = [win(scores, pairs.better[its], pairs.worse[its]) for scores in (before, after.scores)]
    return Gain(
        interval(exam.group[rated], weighted_mean((losses[0] - losses[1])[rated], exam.weight[rated])),
        interval(exam.group[pairs.better[its]], weighted_mean(won[1] - won[0])),
    )


def _logit(scores: np.ndarray) -> np.ndarray:
    kept = np.clip(scores, 1e-7, 1 - 1e-7)
    return np.log(kept / (1 - kept))


def lines_before(scorer: Ensemble) -> list[Line]:
    """The calibration that a scorer comes with."""
    return lines_of(scorer, scorer.card.modalities)
