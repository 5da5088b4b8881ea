"""The arms of a campaign beside each other, and what each step between them gave, with paired intervals.

Arms have the same prompts and seeds (`medsyn.arms`), so they are compared on the images that both have: of an arm that
filters the accepted ones. What is compared was neither trained nor used to choose, except the scores, which are marked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from medsyn import arms
from medsyn.arms import Arm
from medsyn.config import Config
from medsyn.evaluation import judge, paired, scored
from medsyn.evaluation.generated import GeneratedImages, Picture, Record
from medsyn.evaluation.paired import Figure
from medsyn.evaluation.read_campaign import Gathered
from medsyn.evaluation.tally import total
from medsyn.models import feature_distances
from medsyn.models.image_features import grey, shrink
from medsyn.seeds import seed

Key = tuple[str, str, int]  # modality, prompt id, replicate

MOST = 1000  # images that a comparison is of: its cost grows with their square
PAIRS = 150  # of images whose structural similarity is measured
_SIDE = 64
SCORES = ("selector", "policy", "passes")  # of the models that chose: not independent
ASPECTS = ("finding", "side", "right")  # what the judge says
LOWER_IS_BETTER = ("distance", "attempts")


def measure(
    config: Config,
    gathered: Gathered,
    groups: Mapping[str, Sequence[str]],
    seen: judge.Seen,
    scores: Mapping[int, scored.Scores],
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Compare the arms, for metrics.json.

    Args:
        config: the campaign's.
        gathered: its images and records.
        groups: the modalities of each group that is compared.
        seen: what the judge saw in the pictures; nothing without a judge.
        scores: what the scorers say of pictures that they did not choose, by their `id`.
        tick: called between two comparisons.

    Returns:
        `arms`, in the order of the steps that lead to them, and by group the figures of each and its `steps`.
    """
    ordered = sorted(config.arms, key=lambda arm: arm.step)
    found: dict[str, Any] = {}
    for name, modalities in groups.items():
        tick()
        real = [one for one in gathered.real.held_out if one.modality in modalities]
        sets = {
            arm.mode: _Set.of({m: gathered.made[m][arm.mode] for m in modalities if m in gathered.made}, seen, scores)
            for arm in ordered
        }
        compared = _Group(sets, _features(real), seed(config.campaign.seed, "arms", name))
        steps = []
        for before, after, what in arms.steps(ordered):
            tick()
            steps.append({"name": what, "before": before.mode, "after": after.mode, **compared.step(before, after)})
        found[name] = {"arms": {arm.mode: compared.own(arm) for arm in ordered}, "steps": steps}
    described = [{"mode": arm.mode, "weights": arm.weights, "filters": arm.filters} for arm in ordered]
    return {"arms": described, "groups": found}


def _features(pictures: Sequence[Picture]) -> np.ndarray:
    """Features [N, D] of at most `MOST` of the pictures."""
    kept = pictures[:: max(1, -(-len(pictures) // MOST))]
    return np.stack([picture.features for picture in kept]) if kept else np.empty((0, 1), np.float32)


@dataclass(frozen=True)
class _Set:
    """The images of one arm in one group."""

    pictures: Mapping[Key, Picture]
    scores: Mapping[Key, Mapping[str, float]]
    sampled: Mapping[Key, Record]  # of the same items in all arms, accepted or not
    values: Mapping[Key, Mapping[str, float]]  # what the judge says of each picture
    yields: Mapping[str, Any]

    @classmethod
    def of(cls, made: Mapping[str, GeneratedImages], seen: judge.Seen, scores: Mapping[int, scored.Scores]) -> _Set:
        """The images of the modalities of a group."""
        pictures: dict[Key, Picture] = {}
        found: dict[Key, Mapping[str, float]] = {}
        sampled: dict[Key, Record] = {}
        for modality, its in made.items():
            for picture, line in zip(its.pictures, its.records, strict=True):
                key = _key(modality, line)
                own = {name: float(line[name]) for name in SCORES if line.get(name) is not None}
                pictures[key], found[key] = picture, own or scores.get(id(picture), {})
            sampled |= {_key(modality, line): line for line in its.sampled}
        values = {}
        for key, picture in pictures.items():
            labels = judge.labels_of([picture.text]) if id(picture) in seen else None
            values[key] = judge.right(seen[id(picture)], labels[0]) if labels else {}
        whole = total(its.tally for its in made.values()).summary()
        names = ("requested", "accepted", "attempts", "attempts_per_accepted", "seconds_per_accepted")
        return cls(pictures, found, sampled, values, {name: whole[name] for name in names})


def _key(modality: str, line: Record) -> Key:
    return modality, line["id"], line["replicate"]


def _prompts(keys: Sequence[Key]) -> list[tuple[str, str]]:
    return [key[:2] for key in keys]


@dataclass(frozen=True)
class _Group:
    """The arms of one group."""

    sets: Mapping[str, _Set]
    real: np.ndarray  # features of held-out images [M, D]
    lot: int
    _distances: dict[tuple[str, tuple[Key, ...]], Figure] = field(default_factory=dict)

    def own(self, arm: Arm) -> dict[str, Any]:
        """The figures of one arm, each of all of its images."""
        its = self.sets[arm.mode]
        keys = _spread(list(its.pictures))
        prompts = _prompts(keys)
        drawn = paired.draws(prompts, self.lot)
        figures = self._figures(arm.mode, keys, keys)
        told = {name: paired.estimate(figure, drawn, len(set(prompts))) for name, figure in figures.items()}
        return {**its.yields, "n": len(keys), "figures": told}

    def step(self, before: Arm, after: Arm) -> dict[str, Any]:
        """What lies between two arms: of each figure before, after, and the change with its interval."""
        first, second = self.sets[before.mode], self.sets[after.mode]
        keys = _spread([key for key in first.pictures if key in second.pictures])
        prompts = _prompts(keys)
        drawn = paired.draws(prompts, self.lot)
        both_scored = [key for key in keys if first.scores[key] and second.scores[key]]
        old, new = (self._figures(one.mode, keys, both_scored) for one in (before, after))
        measures = {name: _change(old[name], new[name], drawn, prompts) for name in old if name in new}
        if len(keys) and len(self.real):
            was, now = (np.stack([its.pictures[key].features for key in keys]) for its in (first, second))
            measures["recall"] = paired.recall_change(was, now, self.real, prompts, self.lot)
        if before.filters and after.filters:
            measures["attempts"] = self._attempts(first, second)
        return {"n": len(keys), "prompts": len(set(prompts)), "measures": measures}

    def _attempts(self, first: _Set, second: _Set) -> dict[str, float | None]:
        """Candidates for an accepted image, of all items, whether or not they were accepted."""
        keys = [key for key in first.sampled if key in second.sampled]
        prompts = _prompts(keys)

        def of(its: _Set) -> Figure:
            lines = [its.sampled[key] for key in keys]
            return paired.ratio(
                np.array([line["attempts"] for line in lines], float),
                np.array([line["accepted"] for line in lines], float),
            )

        return _change(of(first), of(second), paired.draws(prompts, self.lot), prompts)

    def _figures(self, mode: str, keys: Sequence[Key], scored_ones: Collection[Key]) -> dict[str, Figure]:
        """What is measured of an arm's images `keys`, and of those whose scores count."""
        its, found = self.sets[mode], {}
        for name in ASPECTS:
            values = np.array([its.values[key].get(name, np.nan) for key in keys], float)
            if np.isfinite(values).any():
                found[name] = paired.mean(values)
        if len(keys) > 1 and len(self.real) > 1:
            found["distance"] = self._distance(mode, tuple(keys))
        place = {key: number for number, key in enumerate(keys)}
        pairs = [(pair, value) for pair, value in self._unlike[mode] if place.keys() >= set(pair)]
        if pairs:
            ends = np.array([[place[key] for key in pair] for pair, _ in pairs])
            found["diversity"] = paired.over_pairs(ends, np.array([value for _, value in pairs]))
        counted = set(scored_ones)
        for name in SCORES:
            scores = np.array([its.scores[key].get(name, np.nan) if key in counted else np.nan for key in keys], float)
            if np.isfinite(scores).any():
                found[name] = paired.mean(scores)
        return found

    def _distance(self, mode: str, keys: tuple[Key, ...]) -> Figure:
        """Kept for as long as the group: several steps begin or end with the same images."""
        if (mode, keys) not in self._distances:
            features = np.stack([self.sets[mode].pictures[key].features for key in keys])
            self._distances[mode, keys] = paired.distance(features, self.real, self._among)
        return self._distances[mode, keys]

    @cached_property
    def _among(self) -> float:
        return feature_distances.among(self.real)

    @cached_property
    def _unlike(self) -> dict[str, list[tuple[tuple[Key, Key], float]]]:
        """1 - the structural similarity of pairs of images, the same pairs in every arm."""
        common = [key for key in next(iter(self.sets.values())).pictures if self._everywhere(key)]
        generator, count = np.random.default_rng(self.lot), len(common)
        chosen: dict[tuple[int, int], None] = {}
        while len(chosen) < min(PAIRS, count * (count - 1) // 2):
            one, other = sorted(generator.integers(0, count, 2).tolist())
            if one != other:
                chosen[one, other] = None
        pairs = [(common[one], common[other]) for one, other in chosen]
        return {
            mode: [((one, other), _unlike(its.pictures[one], its.pictures[other])) for one, other in pairs]
            for mode, its in self.sets.items()
        }

    def _everywhere(self, key: Key) -> bool:
        return all(key in its.pictures for its in self.sets.values())


def _unlike(one: Picture, other: Picture) -> float:
    first, second = (grey(shrink(picture.pixels, _SIDE)) for picture in (one, other))
    return 1 - float(structural_similarity(first, second, data_range=1.0))


def _spread(keys: list[Key]) -> list[Key]:
    """At most `MOST` of the keys, in their order."""
    return keys[:: max(1, -(-len(keys) // MOST))]


def _change(before: Figure, after: Figure, drawn: paired.Draws, prompts: Sequence[Any]) -> dict[str, float | None]:
    count = len(set(prompts))
    old, new = (paired.estimate(figure, drawn, 0)["value"] for figure in (before, after))
    gain = paired.estimate(paired.difference(after, before), drawn, count)
    return {"before": old, "after": new, "change": gain["value"], "low": gain["low"], "high": gain["high"]}
