"""What experts think of the campaign's own images, and whether the Selector knew: images it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from medsyn import own_ratings
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 500
POOR = 1.5  # an image whose mean rating is below is poor: 1 on the scale of 1 to 3

Statistic = Callable[[np.ndarray, np.ndarray], float]  # of ratings [N] and the Selector's scores [N]


def measure(directory: CampaignDirectory, campaign_seed: int) -> dict[str, Any] | None:
    """Ratings of the images that the campaign makes now: of the raters, and of each mode; None without any.

    Args:
        directory: the campaign's.
        campaign_seed: decides what the bootstrap draws.
    """
    if own_ratings.current(directory) is None:
        return None
    from medsyn.rating.report import assess
    from medsyn.rating.sessions import read_sessions

    sessions = read_sessions(directory.ratings)
    modes = {str(mode): its for mode, its in by_image(sessions).groupby("mode")}
    return {
        "raters": assess(sessions).as_dict(),
        "modes": {mode: _of_mode(its, seed(campaign_seed, "rated", mode)) for mode, its in modes.items()},
    }


def by_image(sessions: pd.DataFrame) -> pd.DataFrame:
    """A row for each rated image that was generated: `mode`, `prompt_id`, mean `rating`, `selector` (NaN if unscored).

    A repeat measures its rater, and is left out.
    """
    from medsyn.rating.sessions import CASE

    is_rating = (sessions.kind == CASE) & sessions.repeat_of.isna() & sessions.rating.notna()
    made = sessions[is_rating & (sessions.source == "generated")]
    made = made.assign(rating=made.rating.astype(float), member=made.member.fillna(""))
    about = {name: (name, "first") for name in ("mode", "prompt_id", "selector")}
    return made.groupby(["file", "member"], as_index=False).agg(rating=("rating", "mean"), **about)


def _of_mode(images: pd.DataFrame, of: int) -> dict[str, Any]:
    scored = images[images.selector.notna()]
    return {
        "images": len(images),
        "mean": estimate(lambda ratings, _: float(ratings.mean()), images, of),
        "poor": estimate(lambda ratings, _: float((ratings < POOR).mean()), images, of),
        "selector_auroc": estimate(_auroc, scored, of),
    }


def estimate(statistic: Statistic, images: pd.DataFrame, of: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """A statistic of images with its 95 % interval, from prompts drawn with replacement: images of one are alike.

    Args:
        statistic: NaN where the images say nothing about it.
        images: rows of `by_image`.
        of: decides what is drawn.
        resamples: how often.

    Returns:
        value, low and high (None where they are not known), and n images.
    """
    ratings, scores = images.rating.to_numpy(float), images.selector.to_numpy(float)
    prompts = list(images.groupby("prompt_id", dropna=False).indices.values())
    low = high = value = math.nan
    if len(images):
        value = statistic(ratings, scores)
    if len(prompts) > 1:
        generator = np.random.default_rng(of)
        picks = (generator.integers(0, len(prompts), len(prompts)) for _ in range(resamples))
        places = (np.concatenate([prompts[number] for number in pick]) for pick in picks)
        drawn = np.array([statistic(ratings[place], scores[place]) for place in places])
        if (known := drawn[~np.isnan(drawn)]).size >= resamples / 2:
            low, high = np.percentile(known, [2.5, 97.5])
    found = {"value": value, "low": low, "high": high}
    return {name: None if math.isnan(its) else float(its) for name, its in found.items()} | {"n": len(images)}


def _auroc(ratings: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a good image scores higher than a poor one: Mann and Whitney's statistic."""
    from scipy.stats import rankdata

    good = ratings >= POOR
    count = int(good.sum())
    if count in (0, len(good)):
        return math.nan
    above = rankdata(scores)[good].sum() - count * (count + 1) / 2
    return float(above / (count * (len(good) - count)))
