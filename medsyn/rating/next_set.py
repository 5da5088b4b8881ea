"""The next set: of the images of a source those that say most, given all answers so far."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_MOST_KNOWN = MOST_CONSIDERED // 2  # of them, where there are others enough


def by_information(sources: Iterable[Source], wishes: Wishes, sessions: pd.DataFrame) -> Choice:
    """The images and pairs whose answers are expected to say most of the images' quality.

    Images are rated evenly over modalities and prompts. Pairs are of one modality; their images need not be rated.

    Args:
        sources: everything that could be shown, may be a stream; of more than `MOST_CONSIDERED` those with the fewest
            answers, and a random sample of those with none, which is half of them.
        wishes: how many images and pairs.
        sessions: all answers so far (`medsyn.rating.sessions.read_sessions`).
    """
    considered = _considered(sources, wishes, Counter([*sessions.sha256, *sessions.sha256_b.dropna()]))
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


def _considered(sources: Iterable[Source], wishes: Wishes, answers: Mapping[str, int]) -> list[Source]:
    """Images that were answered about, and others, up to the limit."""
    known: list[tuple[int, Source]] = []

    def others() -> Iterator[Source]:
        for source in sources:
            if number := answers.get(_digest(source)):
                known.append((number, source))
            else:
                yield source

    fresh = draw(others(), MOST_CONSIDERED, wishes.seed, "next")
    fresh = fresh[: MOST_CONSIDERED - min(len(known), _MOST_KNOWN)]
    known.sort(key=lambda one: (one[0], one[1].rank(wishes.seed, "next")))
    return [*(source for _, source in known[: MOST_CONSIDERED - len(fresh)]), *fresh]


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
