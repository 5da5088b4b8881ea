"""From which score an image passes: chosen for each modality on scores of members that had not seen the images.

Good photographs set the mark. A generator's own images are not as good as they, and a mark that none of them reaches
chooses nothing; so where stage 2 knows what the generator makes, well and badly, the mark comes down to it, as far as
poor images stay out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medsyn.models.scores import Basis, Threshold
from medsyn.training.metrics import threshold_keeping

KEPT_SHARE = 0.95  # of the good images, that reach a threshold
SAMPLES_SHARE = 0.8  # of what the generator samples well, that should reach it, and
POOR_SHARE = 0.1  # of what is rated poor, and of what is sampled badly, that may reach it for this
FEWEST_GOOD = 8  # images of a modality for a threshold of its own
FEWEST_SAMPLES = 5  # of the generator's, to move one

# where an image comes from
PHOTOGRAPH, GENERATED, SAMPLED, SPOILT = range(4)  # rated; rated, made by a generator; sampled well; sampled badly


@dataclass(frozen=True)
class Seen:
    """M images, as those members score them that had not seen them."""

    scores: np.ndarray  # float64 [M]
    good: np.ndarray  # bool [M], by experts; of no account where no expert has seen the image
    origin: np.ndarray  # int64 [M]
    modality: np.ndarray  # str [M]
    fold: np.ndarray  # int64 [M]

    def at(self, rows: np.ndarray) -> Seen:
        """Some of them."""
        return Seen(*(getattr(self, name)[rows] for name in ("scores", "good", "origin", "modality", "fold")))

    @property
    def rated(self) -> np.ndarray:
        """bool [M]: by experts."""
        return self.origin <= GENERATED


def thresholds(seen: Seen, names: Sequence[str]) -> dict[str, Threshold]:
    """For each modality the score from which its images pass; of all modalities together where it has too few.

    By the first of these that applies:

    1. the highest score that `KEPT_SHARE` of the generated images that experts rated good reach, with `FEWEST_GOOD`;
    2. the same of all images that were rated good. If fewer than `SAMPLES_SHARE` of what the generator samples well
       reach that, it is lowered until they do, or until more than `POOR_SHARE` of the images that were rated poor, or
       of those that were sampled badly, would pass.

    The shares that pass are of images whose fold did not choose the threshold.

    Args:
        seen: the images.
        names: of the modalities.
    """
    if not (seen.good & seen.rated).any():
        return {}
    return {name: _threshold(seen, name) for name in names}


def _threshold(seen: Seen, name: str) -> Threshold:
    its = seen.modality == name
    enough = int((its & seen.good & seen.rated).sum()) >= FEWEST_GOOD
    chosen_on = seen.at(its if enough else its | seen.rated)
    value, basis = _choose(chosen_on)
    own = seen.at(its)
    passing, known = np.zeros(len(own.scores), dtype=bool), np.zeros(len(own.scores), dtype=bool)
    for fold in np.unique(own.fold):
        others = chosen_on.at(chosen_on.fold != fold)
        if (others.good & others.rated).any():
            here = own.fold == fold
            passing[here], known[here] = own.scores[here] >= _choose(others)[0], True
    counted = _counted(chosen_on, basis)
    of_samples, spoilt = own.origin == SAMPLED, own.origin == SPOILT

    def share(rows: np.ndarray) -> float | None:
        return float(passing[rows & known].mean()) if (rows & known).any() else None

    return Threshold(
        threshold=value,
        basis=basis,
        good=int((counted & chosen_on.good).sum()),
        poor=int((counted & ~chosen_on.good).sum()),
        good_passing=share(own.rated & own.good),
        poor_passing=share(own.rated & ~own.good),
        samples=int(of_samples.sum()),
        spoilt=int(spoilt.sum()),
        samples_passing=share(of_samples),
        spoilt_passing=share(spoilt),
    )


def _counted(seen: Seen, basis: Basis) -> np.ndarray:
    """Which rated images a threshold is chosen on, bool [M]."""
    return (seen.origin == GENERATED) if basis == "rated samples" else seen.rated


def _choose(seen: Seen) -> tuple[float, Basis]:
    """The threshold, and what decided it; one at least is rated good."""
    scores, good = seen.scores, seen.good
    generated = scores[(seen.origin == GENERATED) & good]
    if len(generated) >= FEWEST_GOOD:
        return threshold_keeping(generated, KEPT_SHARE), "rated samples"
    of_rated = threshold_keeping(scores[seen.rated & good], KEPT_SHARE)
    samples = scores[seen.origin == SAMPLED]
    if len(samples) < FEWEST_SAMPLES:
        return of_rated, "rated"
    lowest = [threshold_keeping(samples, SAMPLES_SHARE)]
    lowest += [_refusing(scores[rows]) for rows in (seen.rated & ~good, seen.origin == SPOILT) if rows.any()]
    lowered = max(lowest)
    return (lowered, "samples") if lowered < of_rated else (of_rated, "rated")


def _refusing(scores: np.ndarray) -> float:
    """The lowest threshold that at most `POOR_SHARE` of scores [N] reach."""
    descending = np.sort(scores)[::-1]
    return min(1.0, float(np.nextafter(descending[int(POOR_SHARE * len(scores) + 1e-9)], np.inf)))
