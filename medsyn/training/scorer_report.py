"""What the held-out ratings say about a trained scorer: the part of a summary that a reader should doubt first."""

from __future__ import annotations

from typing import Any

import numpy as np

from medsyn.training.metrics import auroc, calibration_error, threshold_keeping
from medsyn.training.rating_data import RatedSet
from medsyn.training.scorer_loop import Standing, finite, mean
from medsyn.training.scorer_loss import Judgements

KEPT_SHARE = 0.9  # of the good held-out images, by a suggested threshold
FEWEST_GOOD = 5  # held-out images for a suggestion
NOTE = (
    "auroc is of the epoch that did best on these very rows, so it is optimistic; auroc_last_epoch involved no choice. "
    "Images are held out by file: with several images of one patient both flatter."
)


def describe_scorer(best: Standing, last: Standing, judged: Judgements | None, rated: RatedSet) -> dict[str, Any]:
    """What is reported of either scorer.

    Args:
        best: of the epoch whose weights are kept.
        last: of the last epoch.
        judged: the held-out rows under the kept weights.
        rated: what the rows are of.
    """
    described: dict[str, Any] = {
        "epoch": best.epoch,
        "auroc": finite(best.auroc),
        "auroc_last_epoch": finite(last.auroc),
        "loss": finite(best.loss),
    }
    if judged is None:
        return described
    scores, own = judged.scores, judged.matched
    return {
        **described,
        "calibration_error": calibration_error(scores, judged.reward.cpu().numpy()),
        "auroc_by_modality": {
            name: auroc(scores[of], judged.good[of]) for name, of in _by_modality(judged, rated).items()
        },
        "mean_score_by_rating": {
            str(rating): mean(scores[own & (rated.rating[judged.rows] == rating)]) for rating in (1, 2, 3)
        },
        **({} if own.all() else _describe_prompts(judged, rated)),
    }


def _describe_prompts(judged: Judgements, rated: RatedSet) -> dict[str, float | None]:
    """What is reported of a Policy besides: ratings and prompts told apart.

    `auroc_rating` ranks good over poor images under their own prompts; `auroc_prompt` ranks good images under their
    own prompts over good images under wrong ones, and `auroc_prompt_same_modality` over wrong ones that at least name
    the right modality.
    """
    scores, own, good = judged.scores, judged.matched, judged.good
    same = rated.prompt_modality[judged.prompts] == rated.modality[judged.rows]
    return {
        "auroc_rating": auroc(scores[own], good[own]),
        "auroc_prompt": auroc(scores[good | ~own], good[good | ~own]),
        "auroc_prompt_same_modality": auroc(scores[good | (~own & same)], good[good | (~own & same)]),
        "mean_score_under_wrong_prompt": mean(scores[~own]),
    }


def suggest_thresholds(judged: Judgements | None, rated: RatedSet) -> dict[str, dict[str, Any]]:
    """Per modality the score that most good held-out images reach, and how many poor ones reach it too.

    A modality with too few good images held out has no threshold (None).
    """
    if judged is None:
        return {}
    suggestions = {}
    for name, of in _by_modality(judged, rated).items():
        scores, good = judged.scores[of], judged.good[of]
        threshold = threshold_keeping(scores[good], KEPT_SHARE) if good.sum() >= FEWEST_GOOD else None
        suggestions[name] = {
            "threshold": threshold,
            "good": int(good.sum()),
            "poor": int((~good).sum()),
            "poor_passing": None if threshold is None else mean((scores[~good] >= threshold).astype(float)),
        }
    return suggestions


def _by_modality(judged: Judgements, rated: RatedSet) -> dict[str, np.ndarray]:
    """{modality: bool [M]}, in the order of the names."""
    modality = rated.modality[judged.rows]
    return {str(name): modality == name for name in np.unique(modality)}
