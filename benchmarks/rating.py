"""How many answers it takes to know the order of images: ratings alone, random pairs, and what `rate next` asks.

    uv run python benchmarks/rating.py

Three simulated raters, whose single ratings have an ICC of .3, .45 and .6, see 100 images of a known quality. They rate
in three levels, each with a strictness of their own, or compare two images. The noise of a comparison is what decides,
so there are two tables: the variance of the noise is smaller than that of a rating by what the ICC of expert
observers rose by from levels to pairs, on similar CT images (.276 to .562: a factor of 3.4) and on dissimilar ones
(.665 to .785: 1.8; Eur Radiol 2024). Printed is the number of answers after which Spearman's correlation with the truth
is .9: mean over seeds and its 95 % interval (t distribution), and the ratio to ratings alone, paired by seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr, t

from medsyn.rating.choose import choose_pairs, choose_ratings
from medsyn.rating.quality import MARGIN, Evidence, infer

IMAGES, BATCH, MOST = 100, 20, 3000
ICCS = (0.3, 0.45, 0.6)
THRESHOLDS = (-0.9, 0.9)
ENOUGH = 0.9
REDUCTIONS = {"similar images (ICC .276 -> .562)": 3.36, "dissimilar images (ICC .665 -> .785)": 1.84}
WAYS = ("mean of ratings", "ratings, modelled", "random pairs", "rate next: pairs", "rate next: ratings, then pairs")


@dataclass
class Rater:
    """One simulated expert."""

    strictness: float
    noise: float
    pair_noise: float
    random: np.random.Generator

    def rate(self, quality: float) -> int:
        """1, 2 or 3."""
        seen = quality - self.strictness + self.random.normal(0, self.noise)
        return 1 + sum(seen > edge for edge in THRESHOLDS)

    def compare(self, first: float, second: float) -> str:
        """`a`, `b` or `same`."""
        seen = first - second + self.random.normal(0, self.pair_noise)
        return "same" if abs(seen) < MARGIN else "a" if seen > 0 else "b"


def answers_needed(way: str, reduction: float, seed: int) -> float:
    """How many answers one simulated reading needs, in sets of `BATCH` that the raters get in turn."""
    of = np.random.default_rng(seed)
    truth = of.normal(size=IMAGES)
    raters = [Rater(of.normal(0, 0.3), noise(icc), noise(icc) * math.sqrt(2 / reduction), of) for icc in ICCS]
    evidence = Evidence(IMAGES)
    for turn in range(MOST // BATCH):
        rater = turn % len(raters)
        for images in ask(way, evidence, turn, of):
            if len(images) == 1:
                evidence.ratings.append((images[0], rater, raters[rater].rate(truth[images[0]])))
            else:
                first, second = images
                evidence.pairs.append((first, second, raters[rater].compare(truth[first], truth[second])))
        if turn * BATCH >= IMAGES and spearmanr(order(way, evidence), truth).statistic >= ENOUGH:
            return (turn + 1) * BATCH
    return math.nan


def noise(icc: float) -> float:
    """The standard deviation of a single rating's noise, where that of quality is 1."""
    return math.sqrt((1 - icc) / icc)


def ask(way: str, evidence: Evidence, turn: int, of: np.random.Generator) -> Sequence[tuple[int, ...]]:
    """The next set: images to rate (one), or to compare (two)."""
    strata = ["CT"] * IMAGES
    if "next" in way:
        belief = infer(evidence)
        if "then" in way and turn < len(ICCS):
            return [(image,) for image in choose_ratings(belief, strata, BATCH, of)]
        return choose_pairs(belief, strata, BATCH, of)
    if way == "random pairs":
        return [tuple(map(int, of.choice(IMAGES, 2, replace=False))) for _ in range(BATCH)]
    return [((turn * BATCH + place) % IMAGES,) for place in range(BATCH)]


def order(way: str, evidence: Evidence) -> np.ndarray:
    """What is thought of all images after the answers."""
    if way != "mean of ratings":
        return infer(evidence).mean
    sums, counts = np.zeros(IMAGES), np.zeros(IMAGES)
    for image, _, rating in evidence.ratings:
        sums[image] += rating
        counts[image] += 1
    return np.divide(sums, counts, out=np.full(IMAGES, 2.0), where=counts > 0)


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval of a few values."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{values.mean():.3g} [{values.mean() - half:.3g}, {values.mean() + half:.3g}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    args = parser.parse_args(arguments)
    for name, reduction in REDUCTIONS.items():
        print(f"{name}, {args.seeds} seeds")
        print("| way | answers until Spearman .9 | of those with ratings alone |\n| --- | --- | --- |")
        needed = {way: np.array([answers_needed(way, reduction, seed) for seed in range(args.seeds)]) for way in WAYS}
        for way, values in needed.items():
            print(f"| {way} | {interval(values)} | {interval(values / needed[WAYS[0]])} |", flush=True)


if __name__ == "__main__":
    main()
