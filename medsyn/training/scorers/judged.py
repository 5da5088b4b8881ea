"""Ratings that no scorer learns from: an alignment's judge has them for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from medsyn.config import Config
from medsyn.data.tables.read import RatingRow
from medsyn.data.tables.split import held_out_groups
from medsyn.seeds import seed
from medsyn.training.scorers.rated import GOOD


def judged_groups(config: Config, rows: Iterable[RatingRow], group_of: Mapping[str, str]) -> frozenset[str]:
    """The groups of rated images that are the judge's alone: `align.judge_share` of the good and of the poor ones.

    None where nothing is aligned.

    Args:
        config: the campaign's.
        rows: all its ratings, of every modality.
        group_of: the group of every file (`medsyn.data.tables.split.groups`).
    """
    if not config.align.enabled:
        return frozenset()
    images = {(row.file, f"{row.modality} {row.rating >= GOOD}") for row in rows}
    members = ((group_of[file], stratum) for file, stratum in images)
    return frozenset(held_out_groups(members, config.align.judge_share, seed(config.campaign.seed, "judge")))
