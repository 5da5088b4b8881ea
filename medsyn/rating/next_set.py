"""The next set: of the images of a source those that say most, given all answers so far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medsyn.rating.choose import choose_pairs, choose_ratings
from medsyn.rating.export import Choice, Wishes
from medsyn.rating.quality import Evidence, infer
from medsyn.rating.sessions import CASE
from medsyn.rating.sources import Source, draw
from medsyn.seeds import seed

if TYPE_CHECKING:
    import pandas as pd

MOST_CONSIDERED = 2000  # images whose joint distribution is computed: 32 MB, and seconds


def by_information(sources: Iterable[Source], wishes: Wishes, sessions: pd.DataFrame) -> Choice:
    """The images and pairs whose answers are expected to say most of the images' quality.

    Images are rated evenly over modalities and prompts. Pairs are of one modality; their images need not be rated.

    Args:
        sources: everything that could be shown; of more than `MOST_CONSIDERED` a random sample, and all that were
            answered about.
        wishes: how many images and pairs.
        sessions: all answers so far (`medsyn.rating.sessions.read_sessions`).
    """
    considered = list(_considered(sources, wishes, set(sessions.sha256) | set(sessions.sha256_b.dropna())))
    belief = infer(_evidence(considered, sessions))
    of = np.random.default_rng(seed(wishes.seed, "next set", len(sessions)))
    rated = choose_ratings(belief, [(one.modality, one.prompt) for one in considered], wishes.images, of)
    most = wishes.most_pairs(len(rated))
    pairs = choose_pairs(belief, [one.modality for one in considered], most, of)
    compared = [image for image in dict.fromkeys(np.ravel(pairs).astype(int).tolist()) if image not in set(rated)]
    place = {image: number for number, image in enumerate([*rated, *compared])}
    return Choice(
        rated=[considered[image] for image in rated],
        pairs=[(place[one], place[other]) for one, other in pairs],
        compared=[considered[image] for image in compared],
    )


def _considered(sources: Iterable[Source], wishes: Wishes, answered: set[str]) -> Iterator[Source]:
    """All images that were answered about, and further ones up to the limit."""
    fresh: list[Source] = []
    known = 0
    for source in sources:
        if _digest(source) in answered:
            known += 1
            yield source
        else:
            fresh.append(source)
    yield from draw(fresh, max(0, MOST_CONSIDERED - known), wishes.seed, "next")


def _digest(source: Source) -> str:
    return source.sha256 or hashlib.sha256(source.content()).hexdigest()


def _evidence(considered: Sequence[Source], sessions: pd.DataFrame) -> Evidence:
    """What was answered about these images; real ones that were mixed in are not among them."""
    number = {(_digest(source), source.volume): place for place, source in enumerate(considered)}
    raters = {rater: place for place, rater in enumerate(sorted(set(sessions.rater)))}
    evidence = Evidence(len(considered))
    columns = ["kind", "rater", "rating", "preferred", "sha256", "volume", "sha256_b", "volume_b"]
    for row in sessions[columns].astype(object).where(sessions[columns].notna(), None).to_dict("records"):
        image = number.get((row["sha256"], row["volume"]))
        if image is None:
            continue
        if row["kind"] == CASE and row["rating"] is not None:
            evidence.ratings.append((image, raters[row["rater"]], int(row["rating"])))
        elif row["preferred"] is not None and (other := number.get((row["sha256_b"], row["volume_b"]))) is not None:
            evidence.pairs.append((image, other, row["preferred"]))
    return evidence
