"""What the held-out ratings say about a trained scorer: the part of a summary to doubt first."""

from __future__ import annotations

from typing import Any

import pandas as pd

from medsyn.training.metrics import auroc, calibration_error, threshold_keeping
from medsyn.training.scorers.loop import Standing, finite
from medsyn.training.scorers.loss import Judgements
from medsyn.training.scorers.rated import RatedSet

KEPT_SHARE = 0.9  # of the good held-out images, by a suggested threshold
FEWEST_GOOD = 5  # held-out images for a suggestion
NOTE = (
    "auroc is of the epoch that did best on these very rows, so it is optimistic; auroc_last_epoch involved no choice. "
    "Images are held out by the table's patient_id and group, else by file: then both flatter where one patient has "
    "several images, or one image several degraded copies."
)


def describe_scorer(best: Standing, last: Standing, judged: Judgements | None, rated: RatedSet) -> dict[str, Any]:
    """The part of the report that both scorers share.

    Args:
        best: of the epoch whose weights are kept.
        last: of the last epoch.
        judged: the held-out rows under the kept weights.
        rated: the set that the rows belong to.
    """
    described: dict[str, Any] = {
        "epoch": best.epoch,
        "auroc": finite(best.auroc),
        "auroc_last_epoch": finite(last.auroc),
        "loss": finite(best.loss),
    }
    if judged is None:
        return described
    table = _table(judged, rated)
    own = table[table.own]
    return {
        **described,
        "calibration_error": calibration_error(judged.scores, judged.reward.cpu().numpy()),
        "auroc_by_modality": {name: _auroc(its) for name, its in table.groupby("modality")},
        "mean_score_by_rating": {str(rating): finite(own.score[own.rating == rating].mean()) for rating in (1, 2, 3)},
        **({} if table.own.all() else _describe_prompts(table)),
    }


def _table(judged: Judgements, rated: RatedSet) -> pd.DataFrame:
    """One row per judgement: the score, and what it is about."""
    return pd.DataFrame(
        {
            "score": judged.scores,
            "good": judged.good,
            "own": judged.matched,
            "rating": rated.rating[judged.rows],
            "modality": rated.modality[judged.rows],
            "prompt_modality": rated.prompt_modality[judged.prompts],
        }
    )


def _auroc(table: pd.DataFrame) -> float | None:
    return auroc(table.score.to_numpy(), table.good.to_numpy())


def _describe_prompts(table: pd.DataFrame) -> dict[str, float | None]:
    """The Policy's own part of the report: ratings and prompts separately.

    `auroc_rating` ranks good over poor images under their own prompts; `auroc_prompt` ranks good images under their
    own prompts over good images under wrong ones, and `auroc_prompt_same_modality` over wrong ones that at least name
    the right modality.
    """
    same = table.prompt_modality == table.modality
    return {
        "auroc_rating": _auroc(table[table.own]),
        "auroc_prompt": _auroc(table[table.good | ~table.own]),
        "auroc_prompt_same_modality": _auroc(table[table.good | (~table.own & same)]),
        "mean_score_under_wrong_prompt": finite(table.score[~table.own].mean()),
    }


def suggest_thresholds(judged: Judgements | None, rated: RatedSet) -> dict[str, dict[str, Any]]:
    """Per modality, the score that most good held-out images reach, and how many poor ones also reach it.

    A modality with too few good images held out has no threshold (None).
    """
    if judged is None:
        return {}
    suggestions: dict[str, dict[str, Any]] = {}
    for name, its in _table(judged, rated).groupby("modality"):
        good, poor = its.score[its.good], its.score[~its.good]
        threshold = threshold_keeping(good.to_numpy(), KEPT_SHARE) if len(good) >= FEWEST_GOOD else None
        suggestions[str(name)] = {
            "threshold": threshold,
            "good": len(good),
            "poor": len(poor),
            "poor_passing": None if threshold is None else finite((poor >= threshold).mean()),
        }
    return suggestions
