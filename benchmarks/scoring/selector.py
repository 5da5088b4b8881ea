"""The Selector's rows of the table of `benchmarks/scorers.py`.

Rows that share a training share its cost: `crossed` trains one Selector for every fold and seed and asks it about the
images of that fold, as they are and changed in known ways.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medsyn.data.degradations.graded import amount, degrade
from medsyn.data.degradations.kinds import DEGRADATIONS, kinds_of
from medsyn.seeds import seed as seed_of
from medsyn.training.metrics import calibration_error
from medsyn.training.scorers.evidence import Statistic, weighted_auroc, weighted_mean
from scoring.figures import Figure, figure, worst
from scoring.images import GOOD, RatedImages, Rating
from scoring.selectors import held_out, scores, threshold, trained

GREY_LEVELS = 5
TRIPLES = ("blur", "noise", "motion", "clipping")
MILD, STRONG = 0.2, 0.8  # severities; strong changes an image at least APART times as much as mild
APART = 1.5
NEVER_SHOWN = 0.7  # severity of the kinds of damage that are left out


@dataclass
class Answers:
    """What Selectors say of images that they have not seen: N answers, of all seeds and folds."""

    seed: list[int] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    modality: list[str] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)  # 1: the image is good, it passes, it is in order; else 0

    def add(self, seed: int, image: Rating, kind: str, score: float, value: float) -> None:
        """One answer."""
        for name, what in (("seed", seed), ("group", image.group), ("modality", image.modality), ("kind", kind)):
            getattr(self, name).append(what)
        self.score.append(float(score))
        self.value.append(float(value))

    def of(self, name: str) -> np.ndarray:
        """One of the lists as an array."""
        return np.array(getattr(self, name))

    def figure(self, name: str, aim: str, rows: np.ndarray, statistic: Callable[[np.ndarray], Statistic]) -> Figure:
        """A figure of some of the answers (bool [N]); `statistic` is given places among them."""
        places = np.flatnonzero(rows)
        return figure(
            name, aim, self.of("seed")[places], self.of("group")[places], lambda chosen: statistic(places[chosen])
        )

    def auroc(self, places: np.ndarray) -> Statistic:
        """Of good against poor ones."""
        return weighted_auroc(self.of("score")[places], self.of("value")[places] > 0.5)

    def share(self, places: np.ndarray) -> Statistic:
        """Of those whose value is 1."""
        return weighted_mean(self.of("value")[places])

    def by(self, what: str, aim: str, rows: np.ndarray, statistic: Callable[[np.ndarray], Statistic]) -> list[Figure]:
        """A figure for every modality, or kind, of some of the answers."""
        names = self.of(what)
        return [self.figure(str(name), aim, rows & (names == name), statistic) for name in np.unique(names[rows])]

    def calibration(self, places: np.ndarray) -> Statistic:
        """Expected calibration error; a bootstrap counts images several times."""
        score, value = self.of("score")[places], self.of("value")[places]

        def of(times: np.ndarray) -> np.ndarray:
            return np.array(
                [calibration_error(*(np.repeat(one, its.astype(int)) for one in (score, value))) for its in times]
            )

        return of


@dataclass
class Crossed:
    """The answers of cross-fitted Selectors, by what was asked."""

    rated: Answers = field(default_factory=Answers)  # good or poor by experts
    clean: Answers = field(default_factory=Answers)  # passes its threshold; kind: "" as it is, "brighter"
    broken: Answers = field(default_factory=Answers)  # rejected by its threshold
    triples: Answers = field(default_factory=Answers)  # in order


def crossed(images: RatedImages, seeds: int, folds: int, changes: Sequence[str]) -> Crossed:
    """Train on all folds but one, ask about that one: for every fold and seed."""
    found = Crossed()
    for seed in range(seeds):
        fold_of = images.folds(folds, seed)
        for fold in range(folds):
            asked = held_out(images, fold_of, fold)
            without = {group for group, its in fold_of.items() if its == fold}
            with trained(images, without, seed, changes) as (selector, config):
                pixels = images.pixels(asked, config.data.resolution)
                modality = [one.modality for one in asked]
                edge = np.array([threshold(selector, config, one) for one in modality])
                score = scores(selector, pixels, modality)
                for place, one in enumerate(asked):
                    found.rated.add(seed, one, "", score[place], one.rating >= GOOD)
                clean = [place for place, one in enumerate(asked) if one.is_clean]
                its = pixels[clean]
                names = [modality[place] for place in clean]
                brighter = scores(selector, (its.int() + GREY_LEVELS).clamp(max=255).to(torch.uint8), names)
                for number, place in enumerate(clean):
                    found.clean.add(seed, asked[place], "", score[place], score[place] >= edge[place])
                    found.clean.add(seed, asked[place], "brighter", brighter[number], brighter[number] >= edge[place])
                for kind, changed in broken(its, seed):
                    for number, value in enumerate(scores(selector, changed, names)):
                        place = clean[number]
                        found.broken.add(seed, asked[place], kind, value, value < edge[place])
                for kind in TRIPLES:
                    for number, mild, strong in triples(its, kind, seed):
                        place = clean[number]
                        given = scores(selector, torch.stack([mild, strong]), [modality[place]] * 2)
                        found.triples.add(seed, asked[place], kind, given[0], score[place] > given[0] > given[1])
    return found


def broken(pixels: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """What is no image any more, uint8 [N, 3, R, R]: shuffled, stitched from two, white noise."""
    shuffled, stitched, noise = [], [], []
    side = pixels.shape[-1]
    for number, picture in enumerate(pixels):
        rng = np.random.default_rng(seed_of(seed, "broken", number))
        tiles = picture.unflatten(2, (4, -1)).unflatten(1, (4, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        mixed = tiles[torch.from_numpy(rng.permutation(16))].unflatten(0, (4, 4)).permute(2, 0, 3, 1, 4)
        shuffled.append(mixed.flatten(3, 4).flatten(1, 2))
        half = picture.clone()
        half[:, side // 2 :] = pixels[(number + 1) % len(pixels)].flip(-2)[:, side // 2 :]
        stitched.append(half)
        grey = torch.from_numpy(rng.integers(0, 256, (1, side, side), dtype=np.uint8))
        noise.append(grey.expand(3, -1, -1))
    yield from (("shuffled", torch.stack(shuffled)), ("stitched", torch.stack(stitched)), ("noise", torch.stack(noise)))


def triples(pixels: Tensor, kind: str, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(which, mild, strong) of the clean images that are well-posed: both change it, strong by APART times as much."""
    for number, picture in enumerate(pixels):
        clean = picture.float() / 255
        mild, strong = (damaged(clean, kind, severity, seed_of(seed, kind, number)) for severity in (MILD, STRONG))
        before, after = (amount(clean, one.float() / 255) for one in (mild, strong))
        if before >= MILD / 4 and after >= APART * before:
            yield number, mild, strong


def damaged(clean: Tensor, kind: str, severity: float, key: int, other: Tensor | None = None) -> Tensor:
    """uint8 [3, R, R]."""
    made = degrade(clean, kind, severity, np.random.default_rng(key), other)
    return (made * 255).round().to(torch.uint8)


def cross_fitted(
    images: RatedImages, rows: Collection[str], seeds: int, folds: int, changes: Sequence[str]
) -> list[Figure]:
    """The rows `ratings`, `calibration`, `clean`, `rejected` and `triples`."""
    found = crossed(images, seeds, folds, changes)
    figures: list[Figure] = []
    rated, clean, whole = found.rated, found.clean, np.ones(len(found.rated.score), dtype=bool)
    if "ratings" in rows:
        figures.append(rated.figure("rating 1 against 2-3: AUROC", ".97", whole, rated.auroc))
        figures.append(
            worst("rating 1 against 2-3, worst modality", ".92", rated.by("modality", ".92", whole, rated.auroc))
        )
    if "calibration" in rows:
        figures.append(rated.figure("expected calibration error", ".05", whole, rated.calibration))
        its = rated.by("modality", "-", whole, rated.calibration)
        figures.append(worst("calibration, worst modality", "-", its, highest=True))
    if "clean" in rows:
        plain = clean.of("kind") == ""
        figures += [
            worst("clean ones that pass, worst modality", ".92", clean.by("modality", ".92", plain, clean.share))
        ]
        figures.append(clean.figure("clean ones that pass", "-", plain, clean.share))
        moved = Answers(*(list(clean.of(name)[plain]) for name in ("seed", "group", "modality", "kind", "score")))
        moved.value = list(clean.of("value")[~plain] - clean.of("value")[plain])
        all_moved = np.ones(len(moved.value), dtype=bool)
        figures.append(
            moved.figure(f"change of that with {GREY_LEVELS} grey levels more", "±.03", all_moved, moved.share)
        )
    if "rejected" in rows:
        whole = np.ones(len(found.broken.score), dtype=bool)
        figures += _named("rejected at its own threshold", found.broken.by("kind", ".95", whole, found.broken.share))
    if "triples" in rows:
        whole = np.ones(len(found.triples.score), dtype=bool)
        figures += _named("triples in order", found.triples.by("kind", ".95", whole, found.triples.share))
    return figures


def never_shown(
    images: RatedImages, families: Sequence[str], seeds: int, folds: int, changes: Sequence[str]
) -> list[Figure]:
    """The row `kinds`: whole families of damage left out in turn, clean images against those with that damage.

    One fold is asked, and the Selectors are trained on the others.
    """
    found = Answers()
    for seed in range(seeds):
        fold_of = images.folds(folds, seed)
        asked = [one for one in held_out(images, fold_of, 0) if one.is_clean]
        without = {group for group, its in fold_of.items() if its == 0}
        for family in families:
            with trained(images, without, seed, changes, [family]) as (selector, config):
                pixels = images.pixels(asked, config.data.resolution)
                its = [one.modality for one in asked]
                good = scores(selector, pixels, its)
                for kind in (name for name, one in DEGRADATIONS.items() if one.family == family):
                    able = [place for place, one in enumerate(asked) if kind in kinds_of(one.modality)]
                    for place in able:
                        clean, other = (pixels[at % len(pixels)].float() / 255 for at in (place, place + 1))
                        bad = damaged(clean, kind, NEVER_SHOWN, seed_of(seed, kind, place), other)
                        if amount(clean, bad.float() / 255) >= NEVER_SHOWN / 4:
                            found.add(seed, asked[place], kind, good[place], 1)
                            found.add(seed, asked[place], kind, scores(selector, bad[None], [its[place]])[0], 0)
    whole = np.ones(len(found.score), dtype=bool)
    by_kind = found.by("kind", ".90", whole, found.auroc)
    mean = found.figure("kinds never shown, all together: AUROC", "-", whole, found.auroc)
    return [worst("kinds never shown, worst", ".90", by_kind), mean, *_named("never shown", by_kind)]


def _named(name: str, figures: Sequence[Figure]) -> list[Figure]:
    return [Figure(f"{name}: {one.name}", one.interval, one.by_seed, one.aim) for one in figures]
