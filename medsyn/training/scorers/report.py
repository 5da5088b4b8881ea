"""What a scorer's answers about unseen images say, epoch by epoch and at the end: metrics, card and summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medsyn.training.metrics import auroc, calibration_error, threshold_keeping
from medsyn.training.scorers.evidence import FILTER_AT, best_of, spearman
from medsyn.training.scorers.exam import Exam, Record
from medsyn.training.scorers.learner import Learner
from medsyn.training.scorers.policy_learner import FALSE_PER_IMAGE, PolicyLearner
from medsyn.training.scorers.questions import Asked
from medsyn.training.scorers.thresholds import KEPT_SHARE

NOTE = (
    "every figure is of members that were not trained on the image's group, at the epoch that the other groups chose. "
    "Groups are those of the table's patient_id and group, else files: then figures flatter where one patient has "
    "several images, or one image several degraded copies."
)
ALONE = "too few images are rated good, or rated poor, to leave some out: one network, and nothing is known of it"


def figures_of_epoch(learners: Mapping[str, Learner], records: Mapping[str, Record], epoch: int) -> dict[str, Any]:
    """The line of the metrics after an epoch, but for losses in training and learning rates."""
    line: dict[str, Any] = {}
    for name, learner in learners.items():
        answers = records[name].answers[epoch].astype(np.float64)
        its = _even(learner)
        scores, target = 1 / (1 + np.exp(-answers[its])), learner.exam.target[its]
        known = bool(len(its))
        line |= {
            f"{name}_held_out_loss": records[name].loss(epoch) if known else None,
            f"{name}_auroc": auroc(scores, target >= 0.5) if known else None,
            f"{name}_spearman": spearman(scores, target) if known else None,
            f"{name}_calibration_error": calibration_error(scores, target) if known else None,
            f"{name}_filter_at_{FILTER_AT}": best_of(scores, target),
        }
        if isinstance(learner, PolicyLearner):
            own = learner.asked.matched[its]
            good = target >= 0.5
            line |= {"reward_good": mean(scores[own & good]), "reward_poor": mean(scores[own & ~good])}
        else:
            line["pass_rate"] = _pass_rate(scores, target >= 0.5)
    return line


def auroc_after(learner: Learner, record: Record, epoch: int) -> float | None:
    """The AUROC of the answers after an epoch, 0 for before training; None where there are none."""
    its = _even(learner)
    answers = record.answers[epoch].astype(np.float64)[its]
    return None if np.isnan(answers).any() or not len(its) else auroc(answers, learner.exam.target[its] >= 0.5)


def _pass_rate(scores: np.ndarray, good: np.ndarray) -> float | None:
    """The share of rated images that reach what nearly all good ones reach."""
    return float((scores >= threshold_keeping(scores[good], KEPT_SHARE)).mean()) if good.any() else None


def _even(learner: Learner) -> np.ndarray:
    """The rated questions that were answered; a Policy's own prompts as often as its wrong ones, as in training."""
    places = np.flatnonzero(learner.exam.rated)
    if not isinstance(learner, PolicyLearner):
        return places
    return np.repeat(places, np.where(learner.asked.matched[places], FALSE_PER_IMAGE, 1))


def describe_scorer(learner: Learner, record: Record, chosen: list[int], scores: np.ndarray) -> dict[str, Any]:
    """The part of the summary that is about one scorer.

    Args:
        learner: what it was.
        record: all its answers.
        chosen: the epoch that each fold's figures are of.
        scores: calibrated, [M], of images that neither the members nor the calibration knew.
    """
    if not record.epochs:
        return {"epoch": None, "reason": ALONE}
    exam, its = learner.exam, _even(learner)
    good = exam.target >= 0.5
    described = {
        "epoch": record.best,
        "epochs_by_fold": chosen,
        "loss": record.loss(record.best),
        "auroc": auroc(scores[its], good[its]),
        "auroc_last_epoch": auroc_after(learner, record, -1),
        "auroc_by_modality": {
            str(name): auroc(scores[at], good[at])
            for name in np.unique(exam.modality[its])
            for at in [its[exam.modality[its] == name]]
        },
        "calibration_error": calibration_error(scores[its], exam.target[its]),
        "spearman": spearman(scores[its], exam.target[its]),
        f"filter_at_{FILTER_AT}": best_of(scores[its], exam.target[its]),
        "comparisons": _comparisons(exam, scores),
    }
    if isinstance(learner, PolicyLearner):
        described |= _describe_prompts(learner, learner.asked, scores)
    else:
        described["mean_score"] = {"good": mean(scores[exam.rated & good]), "poor": mean(scores[exam.rated & ~good])}
    return described


def _comparisons(exam: Exam, scores: np.ndarray) -> dict[str, dict[str, float | int | None]]:
    """How often the better image has the higher score, by what makes the other one worse."""
    pairs = exam.compared
    wins = win(scores, pairs.better, pairs.worse)
    decided = pairs.preference == 1
    return {
        str(kind): {"pairs": int(its.sum()), "in_order": mean(wins[its])}
        for kind in np.unique(pairs.kind[decided])
        for its in [decided & (pairs.kind == kind)]
    }


def win(scores: np.ndarray, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """float64 [P]: 1 where the better image has the higher score, 0.5 where both have the same."""
    return (scores[better] > scores[worse]) + 0.5 * (scores[better] == scores[worse])


def _describe_prompts(learner: PolicyLearner, asked: Asked, scores: np.ndarray) -> dict[str, Any]:
    """The Policy's own part of the summary: ratings and prompts separately.

    `auroc_rating` ranks good over poor images under their own prompts; `auroc_prompt` ranks good images under their
    own prompts over good images under wrong ones, and `auroc_prompt_same_modality` over wrong ones that at least name
    the right modality.
    """
    rated, own = learner.rated, asked.matched
    scores, good = scores[: len(own)], asked.reward >= 0.5
    known = ~np.isnan(scores)
    same = learner.texts.modality[asked.prompts] == rated.modality[asked.rows]
    ranked = {"auroc_rating": own, "auroc_prompt": good | ~own, "auroc_prompt_same_modality": good | (~own & same)}
    rating = rated.rating[asked.rows]
    return {
        **{name: _auroc(scores, good, its & known) for name, its in ranked.items()},
        "mean_score_under_wrong_prompt": mean(scores[~own & known]),
        "mean_score_by_rating": {str(one): mean(scores[own & known & (rating == one)]) for one in (1, 2, 3)},
    }


def _auroc(scores: np.ndarray, good: np.ndarray, its: np.ndarray) -> float | None:
    return auroc(scores[its], good[its]) if its.any() else None


def mean(values: np.ndarray) -> float | None:
    """The mean of `values`, or None if there are none."""
    return float(values.mean()) if len(values) else None
