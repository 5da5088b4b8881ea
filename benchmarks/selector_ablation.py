"""What the Selector should see: quality metrics, a network, or both?

    python benchmarks/selector_ablation.py --data DIRECTORY [--resolution 64] [--steps 300] [--batch 16] [--seed 0]

Trains one member of the Selector in each of five ways on the same ratings and on the same images with damage, and asks
it about images of groups, and about families of damage, that it has not seen. The groups are halved, and so are the
families: each half of the groups is trained on with one half of the families and judges the other half's images.
Ratings know some kinds of damage, too; those families do not count as never seen. Everything is trained here, with one
loss for all, and not by a campaign: what differs is the input alone. Images of DIRECTORY: see benchmarks/scorers.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scoring.figures import Figure, figure, show
from scoring.images import FAMILY_OF, RatedImages, real
from torch import Tensor
from torch.nn import functional

from medsyn.config import SelectorSection
from medsyn.data.degradations.graded import amount, degrade
from medsyn.data.degradations.kinds import DEGRADATIONS, family_of, kinds_of
from medsyn.modality_names import MODALITIES
from medsyn.models.quality import FEATURES, quality_features
from medsyn.models.selector import SelectorMember
from medsyn.seeds import seed
from medsyn.training.schedule import warmup_cosine
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.degraded import degraded_comparisons
from medsyn.training.scorers.evidence import Statistic, weighted_auroc, weighted_mean

Way = tuple[str, str, bool]  # what sees the image: name, encoder, with metrics
WAYS: tuple[Way, ...] = (
    ("metrics", "none", True),
    ("convolutions", "conv", False),
    ("ViT", "vit", False),
    ("metrics + convolutions", "conv", True),
    ("metrics + ViT", "vit", True),
)
FAMILIES = tuple(sorted({kind.family for kind in DEGRADATIONS.values()}))
RATED_FAMILIES = frozenset(FAMILY_OF.values())
MILD, SEVERE = 0.2, 0.7
KINDS_PER_IMAGE = 5
ASKED = 4  # good images of each modality and half that get every kind of damage
GOOD_PASSES = 0.95
RATE, SLOW = 3e-3, 0.1  # of learning; of a transformer, relative to that


@dataclass(frozen=True)
class Training:
    """How long a member is trained."""

    steps: int
    ratings: int  # in a step; twice as many pairs, and as many good images
    seed: int


@dataclass
class Images:
    """Images with their metrics: N of them."""

    pixels: Tensor  # uint8 [N, 3, R, R]
    metrics: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = torch.cat([quality_features(part.float() / 255) for part in self.pixels.split(32)])

    def batch(self, places: np.ndarray | Tensor, rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Pixels 0..1 and metrics at places; mirrored by chance if there is a generator, which no metric minds."""
        pixels = self.pixels[places].float() / 255
        if rng is not None:
            for side in (-1, -2):
                flip = torch.from_numpy(rng.random(len(pixels)) < 0.5).view(-1, 1, 1, 1)
                pixels = pixels.flip(side).where(flip, pixels)
        return pixels, self.metrics[places]


@dataclass
class Asked:
    """Good images of one half of the groups, and each with every kind of damage."""

    images: Images
    kind: np.ndarray  # str [N]; "" for good ones
    severity: np.ndarray
    original: np.ndarray  # int64 [N], into the images
    modality: np.ndarray
    group: np.ndarray


def train(
    encoder: str, with_metrics: bool, rated: Images, target: Tensor, made: Comparisons, images: Images, given: Training
) -> SelectorMember:
    """One member that has learned from ratings (target [N], 0..1) and from pairs."""
    section = SelectorSection(
        image_size=rated.pixels.shape[-1], patch_size=8, hidden_dim=64, num_layers=3, num_heads=4, mlp_dim=128,
        encoder=encoder, members=1,
    )  # fmt: skip
    torch.manual_seed(given.seed)
    member = SelectorMember(section)
    if with_metrics:
        member.image.standardise.fit(torch.cat([rated.metrics, images.metrics]))
    else:
        member.image.standardise.fit(torch.zeros(2, len(FEATURES)))
    parameters = dict(member.named_parameters())
    groups = [
        {"params": [p for name, p in parameters.items() if ("transformer" in name) == slow], "speed": speed}
        for slow, speed in ((True, SLOW), (False, 1.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.05)
    originals = np.setdiff1d(np.arange(len(images.pixels)), made.worse)
    rng = np.random.default_rng(given.seed)
    size = given.ratings
    for step in range(given.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["speed"] * warmup_cosine(step, given.steps, RATE, given.steps // 10)
        rows, pairs = rng.integers(0, len(target), size), rng.integers(0, len(made.better), 2 * size)
        shown = np.concatenate([made.better[pairs], made.worse[pairs], rng.choice(originals, size)])
        parts = [rated.batch(rows, rng), images.batch(shown, rng)]
        pixels, metrics = (torch.cat([part[place] for part in parts]) for place in (0, 1))
        logits = member(pixels, metrics if with_metrics else 0 * metrics)
        judged, better, worse, good = logits.split([size, 2 * size, 2 * size, size])
        severe = torch.from_numpy(made.severe[pairs]).float()
        loss = functional.binary_cross_entropy_with_logits(judged, target[rows])
        loss = loss + functional.softplus(worse - better).mean()
        loss = loss + 0.5 * (functional.softplus(worse) * severe).mean() + 0.5 * functional.softplus(-good).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        optimizer.step()
    return member.eval()


@torch.no_grad()
def scores(member: SelectorMember, with_metrics: bool, images: Images) -> np.ndarray:
    """Logits [N]."""
    found = []
    for places in torch.arange(len(images.pixels)).split(64):
        pixels, metrics = images.batch(places)
        found.append(member(pixels, metrics if with_metrics else 0 * metrics))
    return torch.cat(found).double().numpy()


def ask(pixels: Tensor, modality: np.ndarray, group: np.ndarray) -> Asked:
    """Every kind of damage, twice, of ASKED images of each modality; all images are asked about as they are."""
    images, rows = list(pixels), [("", 0.0, place) for place in range(len(pixels))]
    for name in MODALITIES:
        its = np.flatnonzero(modality == name)
        for place in its[:: max(1, len(its) // ASKED)][:ASKED]:
            others = its[group[its] != group[place]]
            other = pixels[others[int(place) % len(others)]] if len(others) else pixels[place].flip(-1)
            clean = pixels[place].float() / 255
            for kind in kinds_of(name):
                key = seed("ablation", int(place), kind)
                for severity in (MILD, SEVERE):
                    after = degrade(clean, kind, severity, np.random.default_rng(key), other.float() / 255)
                    if amount(clean, after) >= 0.25 * severity * 0.5:  # else the kind cannot change this image
                        images.append((after * 255).round().to(torch.uint8))
                        rows.append((kind, severity, int(place)))
    original = np.array([row[2] for row in rows])
    return Asked(
        Images(torch.stack(images)),
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        original,
        modality[original],
        group[original],
    )


@dataclass
class Answers:
    """What one way says about ratings and damage of both halves, as values that a mean is taken of."""

    ratings: list[tuple[str, str, bool, float]] = field(default_factory=list)  # group, modality, good, score
    seen: list[tuple[str, float]] = field(default_factory=list)  # group; the share of good images that score higher
    unseen: dict[str, list[tuple[str, float]]] = field(default_factory=dict)  # by family
    ordered: list[tuple[str, float]] = field(default_factory=list)  # group; clean > mild > severe
    rejected: list[tuple[str, float]] = field(default_factory=list)  # shuffled, stitched, static

    def add(self, asked: Asked, score: np.ndarray, trained_on: frozenset[str]) -> None:
        """Take in the scores [N] of what was asked, by a member that knows some families of damage."""
        known: dict[tuple[int, str, float], float] = {}
        for place, (kind, severity) in enumerate(zip(asked.kind, asked.severity, strict=True)):
            known[int(asked.original[place]), str(kind), float(severity)] = score[place]
            if not kind:
                continue
            good = score[(asked.kind == "") & (asked.modality == asked.modality[place])]
            group, higher = str(asked.group[place]), float((good > score[place]).mean())
            family = family_of(str(kind))
            if family in trained_on:
                self.seen.append((group, higher))
            elif family not in RATED_FAMILIES and severity == SEVERE:
                self.unseen.setdefault(family, []).append((group, higher))
            if kind in ("shuffled", "stitched", "static") and severity == SEVERE and family in trained_on:
                self.rejected.append((group, float(score[place] < np.quantile(good, 1 - GOOD_PASSES))))
        for (place, kind, severity), strong in known.items():
            mild = known.get((place, kind, MILD))
            if severity == SEVERE and mild is not None and family_of(kind) in trained_on:
                self.ordered.append((str(asked.group[place]), float(known[place, "", 0.0] > mild > strong)))

    def figures(self) -> list[Figure]:
        """The rows of the table."""
        group, modality, good, score = (np.array(column) for column in zip(*self.ratings, strict=True))
        worst = min(MODALITIES, key=lambda name: _auroc(score[modality == name], good[modality == name]))
        rows = [("rating 1 against 2-3, all", np.ones(len(group), bool)), (f"the worst: {worst}", modality == worst)]
        found = [
            figure(name, "", np.zeros(len(its)), group[its], partial(_area, score, good, its))
            for name, its in ((name, np.flatnonzero(chosen)) for name, chosen in rows)
        ]  # fmt: skip
        family = min(self.unseen, key=lambda name: np.mean([value for _, value in self.unseen[name]]))
        means = [
            ("damage of families in the pairs, AUROC", self.seen),
            ("clean > mild > severe, of these", self.ordered),
            ("families never shown, AUROC", [one for values in self.unseen.values() for one in values]),
            (f"the worst: {family}", self.unseen[family]),
            ("shuffled, stitched, static: rejected", self.rejected),
        ]
        for name, values in means:
            its, value = np.array([one[0] for one in values]), np.array([one[1] for one in values])
            found.append(figure(name, "", np.zeros(len(its)), its, lambda at, value=value: weighted_mean(value[at])))
        return found


def _area(score: np.ndarray, good: np.ndarray, rows: np.ndarray, at: np.ndarray) -> Statistic:
    return weighted_auroc(score[rows[at]], good[rows[at]])


def _auroc(score: np.ndarray, good: np.ndarray) -> float:
    return float(weighted_auroc(score, good)(np.ones((1, len(score))))[0])


def compare(
    data: RatedImages, side: int, given: Training, ways: Sequence[tuple[str, str, bool]], console: Console
) -> None:
    """Print a table for each way."""
    judged = data.judged()
    pixels = data.pixels(judged, side)
    modality = np.array([one.modality for one in judged])
    group = np.array([one.group for one in judged])
    rating = np.array([one.rating for one in judged])
    half_of = data.folds(2, 0)
    half = np.array([half_of[one] for one in group])
    clean = np.array([one.is_clean for one in judged])
    rated = Images(pixels)
    answers = {name: Answers() for name, _, _ in ways}
    seconds = dict.fromkeys(answers, 0.0)
    for this in (0, 1):
        families = frozenset(FAMILIES[this::2])
        mine = np.flatnonzero((half == this) & clean)
        keys = [judged[place].image_path for place in mine]
        kinds = [name for name, kind in DEGRADATIONS.items() if kind.family in families]
        made = degraded_comparisons(pixels[mine], modality[mine], group[mine], keys, this, KINDS_PER_IMAGE, kinds)
        shown = Images(made.pixels)
        train_on, test_on = np.flatnonzero(half == this), np.flatnonzero(half != this)
        its = Images(pixels[train_on])
        target = torch.from_numpy((rating[train_on] - 1) / 2).float()
        theirs = test_on[clean[test_on]]
        asked = ask(pixels[theirs], modality[theirs], group[theirs])
        for name, encoder, with_metrics in ways:
            start = time.process_time()
            member = train(encoder, with_metrics, its, target, made, shown, given)
            seconds[name] += time.process_time() - start
            of_rated = scores(member, with_metrics, Images(rated.pixels[test_on]))
            rows = zip(group[test_on], modality[test_on], rating[test_on] > 1, of_rated, strict=True)
            answers[name].ratings += [(str(g), str(m), bool(y), float(s)) for g, m, y, s in rows]
            answers[name].add(asked, scores(member, with_metrics, asked.images), families)
            console.log(f"half {this + 1} of 2: {name}")
    for name, its_answers in answers.items():
        show(console, f"{name}: {side} px, trained in {seconds[name]:.0f} s of processor time", its_answers.figures())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="rated images, see benchmarks/scorers.py")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="ratings in a step; twice as many pairs")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; images and halves stay the same")
    names = [name for name, _, _ in WAYS]
    parser.add_argument("--ways", nargs="+", choices=names, default=names)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ways = [way for way in WAYS if way[0] in given.ways]
    training = Training(given.steps, given.batch, given.seed)
    compare(real(given.data), given.resolution, training, ways, Console(width=130))


if __name__ == "__main__":
    main()
