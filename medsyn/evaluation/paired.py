"""Figures of two sets of images of the same prompts, and how much of their difference is chance.

Prompts are drawn with replacement, and of each all of its images, in both sets alike (the paired bootstrap; Efron and
Tibshirani 1993): images of one prompt are alike, and a prompt that is hard is hard in both sets. A draw is how often
each image is in it, so a figure is a function of such numbers. Pure functions, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from medsyn.models.feature_distances import NEIGHBOURS, covered, kernel, own_kernel, squared_distances

RESAMPLES = 1000
FEWEST = 10  # prompts; with fewer no interval is given
_HALVES = 40

Draws = np.ndarray  # float32 [R, N]: how often each of N images is in each of R draws
Figure = Callable[[Draws], np.ndarray]  # [R]: of each draw; NaN where it says nothing


def draws(prompts: Sequence[Hashable], of: int, resamples: int = RESAMPLES) -> Draws:
    """How often each image is in each draw of prompts, [R, N].

    Args:
        prompts: the prompt of each of N images.
        of: decides what is drawn.
        resamples: R.
    """
    place: dict[Hashable, int] = {}
    whose = np.array([place.setdefault(prompt, len(place)) for prompt in prompts], dtype=int)
    count = len(place)
    if not count:
        return np.zeros((resamples, 0), np.float32)
    times = np.random.default_rng(of).multinomial(count, np.full(count, 1 / count), resamples)
    return np.asarray(times[:, whose], np.float32)


def estimate(figure: Figure, drawn: Draws, prompts: int) -> dict[str, float | None]:
    """A figure of all images, and its 95 % interval over the draws; None where it is not known."""
    value = float(figure(np.ones((1, drawn.shape[1]), np.float32))[0]) if drawn.shape[1] else np.nan
    low = high = np.nan
    if prompts >= FEWEST:
        of_draws = figure(drawn)
        known = of_draws[np.isfinite(of_draws)]
        if len(known) >= len(of_draws) / 2:
            low, high = np.percentile(known, [2.5, 97.5])
    return {name: _or_none(its) for name, its in (("value", value), ("low", low), ("high", high))}


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def difference(after: Figure, before: Figure) -> Figure:
    """What is more after than before, in the same draw."""
    return lambda drawn: after(drawn) - before(drawn)


def mean(values: np.ndarray) -> Figure:
    """The mean of values [N]; NaN are left out."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0), known.astype(float))


def ratio(above: np.ndarray, below: np.ndarray) -> Figure:
    """The sum of some values [N] divided by the sum of others [N]."""

    def figure(drawn: Draws) -> np.ndarray:
        total = drawn @ below
        return np.divide(drawn @ above, total, out=np.full(len(drawn), np.nan), where=total > 0)

    return figure


def distance(images: np.ndarray, real: np.ndarray, constant: float) -> Figure:
    """Unbiased squared MMD with KID's kernel (Binkowski et al. 2018) of features [N, D] to those of real images [M, D].

    Two copies of an image in a draw are no pair. The real images are not drawn; `constant` is `among` them.
    """
    own = own_kernel(images)
    to_real = kernel(images, real).mean(axis=1)

    def figure(drawn: Draws) -> np.ndarray:
        return _of_pairs(drawn, own) + constant - 2 * (drawn @ to_real) / np.maximum(drawn.sum(axis=1), 1)

    return figure


def _of_pairs(drawn: Draws, values: np.ndarray) -> np.ndarray:
    """The mean of values [N, N], whose diagonal is 0, over the pairs of different images of each draw."""
    pairs = drawn.sum(axis=1) ** 2 - (drawn**2).sum(axis=1)
    total = ((drawn @ values) * drawn).sum(axis=1)
    return np.divide(total, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)


def over_pairs(pairs: np.ndarray, values: np.ndarray) -> Figure:
    """The mean of values [P] of pairs of images, int [P, 2]; a pair counts as often as both its images are drawn."""

    def figure(drawn: Draws) -> np.ndarray:
        times = drawn[:, pairs[:, 0]] * drawn[:, pairs[:, 1]]
        total = times.sum(axis=1)
        return np.divide(times @ values, total, out=np.full(len(drawn), np.nan), where=total > 0)

    return figure


def recall(distances: np.ndarray, own: np.ndarray) -> float:
    """The share of M real images that are nearer to some image than its third neighbour is (Kynkäänniemi et al. 2019).

    Args:
        distances: of each image to each real one [N, M].
        own: of the images to one another [N, N].
    """
    if len(own) <= NEIGHBOURS or not distances.shape[1]:
        return float("nan")
    return float(covered(distances, own).mean())


def recall_change(
    before: np.ndarray, after: np.ndarray, real: np.ndarray, prompts: Sequence[Hashable], of: int
) -> dict[str, float | None]:
    """Recall of real features [M, D] by two sets [N, D] of the same prompts, and the difference with its interval.

    A draw with copies has neighbours at no distance, so the interval is of a delete-half jackknife over prompts (Shao
    and Wu 1989): 1.96 times the spread of the difference over random halves.
    """
    tables = [(squared_distances(its, real), squared_distances(its, its)) for its in (before, after)]
    first, second = (recall(*table) for table in tables)
    change, low, high = second - first, np.nan, np.nan
    names = sorted(set(map(str, prompts)))
    if len(names) >= FEWEST:
        generator, whose, found = np.random.default_rng(of), np.array(list(map(str, prompts))), []
        for _ in range(_HALVES):
            kept = np.isin(whose, generator.permutation(names)[: len(names) // 2])
            halves = [recall(to_real[kept], own[np.ix_(kept, kept)]) for to_real, own in tables]
            found.append(halves[1] - halves[0])
        spread = 1.96 * float(np.std(found))
        low, high = change - spread, change + spread
    named = {"before": first, "after": second, "change": change, "low": low, "high": high}
    return {name: _or_none(its) for name, its in named.items()}
