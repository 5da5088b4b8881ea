"""The judge: what says whether a generator got better, and neither trained nor selected anything.

It is no network. It knows the features that the report measures distances in (`medsyn.models.image_features`), real
images of patients that are held out from training, and ratings of groups of images that no scorer learned from
(`align.judge_share`). From those it has

* `distance`: the kernel distance (KID's; Binkowski et al., ICLR 2018) to held-out good images. Which of them are good,
  the Selector says: a real image that it rejects is no example. It says nothing of generated ones here;
* `quality`: a ridge regression on its ratings;
* `prompt`: a ridge regression from features to text features, on held-out images and their captions: how often the text
  that an image is taken for is nearer to its own prompt than to another one;
* `recall` (Kynkaanniemi et al., NeurIPS 2019) and `diversity`, 1 - the mean structural similarity of two images.

Each regression says first, on images of groups that it has not seen, whether it knows anything: one that is not better
than chance decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from medsyn.models import feature_distances
from medsyn.models.feature_distances import NEIGHBOURS, among, kernel, own_kernel, squared_distances
from medsyn.seeds import seed
from medsyn.training.metrics import auroc

RESAMPLES = 400
FEWEST = 8  # images, real or rated, that say anything
COMPARED = 4  # others that an image's structural similarity is taken to
RIDGE = 0.1  # of the kernel's mean diagonal
_FOLDS = 5
ASPECTS = ("distance", "quality", "prompt")  # which may decide; the lower the better is only the first


@dataclass(frozen=True)
class Seen:
    """N images as the judge sees them, in the order of what was asked for."""

    features: np.ndarray  # float32 [N, D]
    small: np.ndarray  # float32 [N, S, S] in 0..1


@dataclass(frozen=True)
class Known:
    """What the judge knows of one modality."""

    real: Seen  # of held-out patients
    example: np.ndarray  # bool [real], which are of good quality: by the Selector, which says nothing else here
    texts: np.ndarray  # float32 [real, T], features of their captions
    text_groups: Sequence[str]  # which stay together: of patients
    rated: np.ndarray  # float32 [rated, D], features of images that the judge alone knows the ratings of
    good: np.ndarray  # bool [rated]
    rated_groups: Sequence[str]


class Ridge:
    """Ridge regression with as many samples as dimensions or fewer: from the samples' inner products."""

    def __init__(self, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """Fit outputs [N, K] to inputs [N, D], both centred."""
        self._mean, self._shift = inputs.mean(axis=0), outputs.mean(axis=0)
        centred = (inputs - self._mean).astype(np.float64)
        kernel = centred @ centred.T
        scale = max(float(np.trace(kernel)) / len(kernel), 1e-12)
        weights = np.linalg.solve(kernel + RIDGE * scale * np.eye(len(kernel)), outputs - self._shift)
        self._map = centred.T @ weights

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs [M, K] for inputs [M, D]."""
        found: np.ndarray = (inputs - self._mean).astype(np.float64) @ self._map + self._shift
        return found


@dataclass
class Judge:
    """Judges images of one modality."""

    known: Known
    texts: np.ndarray  # float32 [N, T], features of the prompts of the images that it is shown
    campaign_seed: int
    notes: dict[str, Any] = field(default_factory=dict)  # what it knows, and how well

    def __post_init__(self) -> None:
        known = self.known
        self._quality, self._prompt = self._learned_quality(), self._learned_prompts()
        self.good = np.ones(len(known.real.features), dtype=bool)
        if known.example.sum() >= FEWEST:
            self.good = known.example
        self._real = known.real.features[self.good]
        self.decides = {
            "distance": len(self._real) >= FEWEST,
            "quality": self._quality is not None,
            "prompt": self._prompt is not None,
        }
        self.notes |= {
            "real_images": len(known.real.features),
            "good_real_images": int(self.good.sum()),
            "real_diversity": diversity(known.real.small[self.good]) if self.good.sum() > COMPARED else None,
            "decides": [name for name in ASPECTS if self.decides[name]],
        }

    def _learned_quality(self) -> Ridge | None:
        """What tells good from poor; None where it does not, on groups that it has not seen."""
        known = self.known
        target = known.good.astype(float)[:, None]
        if min(known.good.sum(), (~known.good).sum()) < FEWEST / 2:
            self.notes["quality"] = {"ratings": len(known.good), "auroc": None}
            return None
        told = out_of_fold(known.rated, target, known.rated_groups, self.campaign_seed)[:, 0]
        found = interval_of(lambda rows: auroc(told[rows], known.good[rows]), len(told), self._lot("quality"))
        self.notes["quality"] = {"ratings": len(known.good), "auroc": found}
        return Ridge(known.rated, target) if found[1] is not None and found[1] > 0.5 else None

    def _learned_prompts(self) -> Ridge | None:
        """What tells texts from images; None where it does not, on groups that it has not seen."""
        known = self.known
        if len(known.texts) < FEWEST or len(np.unique(known.texts, axis=0)) < 2:
            self.notes["prompt"] = {"images": len(known.texts), "nearer": None}
            return None
        told = out_of_fold(known.real.features, known.texts, known.text_groups, self.campaign_seed)
        hits = nearer(told, known.texts)
        found = interval_of(lambda rows: float(hits[rows].mean()), len(hits), self._lot("prompt"))
        self.notes["prompt"] = {"images": len(known.texts), "nearer": found}
        return Ridge(known.real.features, known.texts) if found[1] is not None and found[1] > 0.5 else None

    def _lot(self, *what: str) -> int:
        return seed(self.campaign_seed, "judge", *what)

    def look(self, seen: Seen) -> Look:
        """What it finds in images, which are in the order of `texts`."""
        own = {"quality": self._quality, "prompt": self._prompt}
        told = {name: None if its is None else its(seen.features) for name, its in own.items()}
        quality, prompt = told["quality"], told["prompt"]
        return Look(
            distances=Distances.between(seen.features, self._real) if self.decides["distance"] else None,
            quality=None if quality is None else quality[:, 0],
            prompt=None if prompt is None else nearer(prompt, self.texts, self.known.texts),
            similarity=similarities(seen.small),
            covered=covered(seen.features, self._real),
        )


@dataclass(frozen=True)
class Distances:
    """The kernel's values that a distance is made of."""

    own: np.ndarray  # float64 [N, N], diagonal 0
    other: np.ndarray  # float64 [N], mean over the real images
    real: float  # of two real images

    @classmethod
    def between(cls, images: np.ndarray, real: np.ndarray) -> Distances:
        """Of features [N, D] and [M, D]."""
        return cls(own_kernel(images), kernel(images, real).mean(axis=1), among(real))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The squared distances [B] of B sets of images, rows [B, n]; one that is there twice is no two images."""
        count = np.zeros((len(rows), len(self.own)))
        np.add.at(count, (np.arange(len(rows))[:, None], rows), 1)
        size = rows.shape[1]
        pairs = np.maximum(size**2 - (count**2).sum(axis=1), 1)
        inside = ((count @ self.own) * count).sum(axis=1) / pairs
        found: np.ndarray = inside + self.real - 2 * (count @ self.other) / size
        return found


@dataclass(frozen=True)
class Look:
    """What the judge found in N images; None for what it knows nothing of."""

    distances: Distances | None
    quality: np.ndarray | None  # float64 [N]
    prompt: np.ndarray | None  # float64 [N], 0..1
    similarity: np.ndarray  # float64 [N]
    covered: np.ndarray | None  # bool [M], of each real image

    @property
    def recalled(self) -> float | None:
        """The share of real images that are covered."""
        return None if self.covered is None else float(self.covered.mean())

    def values(self, aspect: str, rows: np.ndarray) -> np.ndarray | None:
        """One figure of each of B sets of images, [B], from rows [B, n]."""
        if aspect == "distance":
            return None if self.distances is None else self.distances.of(rows)
        if aspect == "diversity":
            found: np.ndarray = 1 - self.similarity[rows].mean(axis=1)
            return found
        each = {"quality": self.quality, "prompt": self.prompt}[aspect]
        return None if each is None else each[rows].mean(axis=1)

    def value(self, aspect: str, rows: np.ndarray) -> float | None:
        """One figure of the images `rows` [n]."""
        found = self.values(aspect, rows[None])
        return None if found is None else float(found[0])

    def figures(self, rows: np.ndarray, lot: int) -> dict[str, Any]:
        """Every figure of the images `rows`: recall, and [value, low, high] of the others."""
        found: dict[str, Any] = {"recall": self.recalled}
        drawn = rows[draws(len(rows), lot)]
        for aspect in (*ASPECTS, "diversity"):
            if (values := self.values(aspect, drawn)) is not None:
                low, high = np.percentile(values, [2.5, 97.5])
                found[aspect] = [self.value(aspect, rows), float(low), float(high)]
        return found


def gains(before: Look, after: Look, rows: np.ndarray, lot: int) -> dict[str, list[float]]:
    """By how much each aspect is better after: [value, low, high, standard error], paired over the images `rows`."""
    found, sets = {}, np.concatenate([rows[None], rows[draws(len(rows), lot)]])
    for aspect in ASPECTS:
        old, new = before.values(aspect, sets), after.values(aspect, sets)
        if old is None or new is None:
            continue
        value, *drawn = (old - new if aspect == "distance" else new - old).tolist()
        low, high = np.percentile(drawn, [2.5, 97.5])
        found[aspect] = [value, float(low), float(high), float(np.std(drawn))]
    return found


def draws(count: int, lot: int) -> np.ndarray:
    """`RESAMPLES` sets of `count` rows, drawn with replacement: [RESAMPLES, count]."""
    return np.random.default_rng(lot).integers(0, count, (RESAMPLES, count))


def interval_of(statistic: Callable[[np.ndarray], float | None], count: int, lot: int) -> list[float | None]:
    """[value, low, high]: the statistic of all rows, and its 95 % interval."""
    drawn = [value for rows in draws(count, lot) if (value := statistic(rows)) is not None]
    if len(drawn) < RESAMPLES / 2:
        return [statistic(np.arange(count)), None, None]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [statistic(np.arange(count)), float(low), float(high)]


def out_of_fold(inputs: np.ndarray, outputs: np.ndarray, groups: Sequence[str], campaign_seed: int) -> np.ndarray:
    """What a regression without an image's group says of it: [N, K]."""
    names = sorted(set(groups), key=lambda name: (seed(campaign_seed, "judge's fold", name), name))
    fold_of = {name: place % min(_FOLDS, len(names)) for place, name in enumerate(names)}
    folds = np.array([fold_of[name] for name in groups])
    told = np.zeros(outputs.shape)
    for fold in np.unique(folds):
        its = folds == fold
        if its.all():
            return np.broadcast_to(outputs.mean(axis=0), outputs.shape).copy()
        told[its] = Ridge(inputs[~its], outputs[~its])(inputs[its])
    return told


def nearer(told: np.ndarray, texts: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """How many of the other texts are further from what an image is taken for than its own: [N] of 0..1; .5 is chance.

    Args:
        told: text features that the images are taken for [N, T].
        texts: their own [N, T]; equal ones are one text.
        others: further texts [M, T].
    """
    own = ((told - texts) ** 2).sum(axis=1)
    every = texts if others is None else np.concatenate([texts, others])
    different, which = np.unique(every, axis=0, return_inverse=True)
    lengths = (different**2).sum(axis=1)
    distances = (told**2).sum(axis=1)[:, None] + lengths - 2 * told @ different.T
    wins = (distances > own[:, None] + 1e-9) + 0.5 * (np.abs(distances - own[:, None]) <= 1e-9)
    wins[np.arange(len(texts)), which.reshape(-1)[: len(texts)]] = 0
    found: np.ndarray = wins.sum(axis=1) / max(1, len(different) - 1)
    return found


def similarities(small: np.ndarray) -> np.ndarray:
    """Mean structural similarity of each image [N, S, S] to the next `COMPARED`: [N]."""
    count = len(small)
    steps = range(1, min(COMPARED, count - 1) + 1)
    return np.array(
        [
            np.mean([structural_similarity(small[k], small[(k + step) % count], data_range=1.0) for step in steps])
            for k in range(count)
        ]
    )


def diversity(small: np.ndarray) -> float:
    """1 - the mean structural similarity of two images [N, S, S]."""
    return 1 - float(similarities(small).mean())


def covered(images: np.ndarray, real: np.ndarray) -> np.ndarray | None:
    """Which real images [M, D] are nearer to some image [N, D] than its `NEIGHBOURS`-th neighbour is: bool [M].

    None where there are too few of either.
    """
    if min(len(images), len(real)) <= NEIGHBOURS:
        return None
    return feature_distances.covered(squared_distances(real, images).T, squared_distances(images, images))
