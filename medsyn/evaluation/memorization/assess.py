"""Everything that is said about copies: the search, how good it is on these images, and the control group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsyn.evaluation.memorization import planted
from medsyn.evaluation.memorization.control import Control, control_group
from medsyn.evaluation.memorization.search import (
    Finding,
    Honest,
    Library,
    Match,
    Picture,
    Query,
    Threshold,
    Tick,
    findings,
    honest,
    planted_recall,
    threshold,
)
from medsyn.evaluation.metrics import wilson

_HONEST_SHOWN = 10


@dataclass(frozen=True)
class Effort:
    """How many images are asked about, of each modality."""

    honest: int = 200
    planted: int = 20  # copies of each kind

    def looks(self, *sets: Sequence[Picture]) -> int:
        """How often an image is looked at, about: each once, and those that are asked about on top of that."""
        real: Counter[str] = Counter(picture.modality for pictures in sets[:-1] for picture in pictures)
        asked = {picture.modality for picture in sets[-1]} & real.keys()
        kinds = len(planted.kinds())
        beside = sum(2 * min(self.honest, real[name]) + kinds * min(self.planted, real[name]) for name in asked)
        return beside + sum(real[name] for name in asked) + sum(picture.modality in asked for picture in sets[-1])


@dataclass(frozen=True)
class Asked:
    """A modality's library and what its synthetic images match."""

    library: Library
    known: Honest | None
    pictures: list[Picture]
    matches: list[Match]


@dataclass(frozen=True)
class Memorization:
    """What was found."""

    images: int  # synthetic ones that were searched for
    unsearched: dict[str, str]  # modalities that cannot be, and why
    findings: list[Finding]
    of_controls: int  # findings whose source was never trained on, and so are none
    limit: Threshold | None
    recall: dict[str, tuple[int, int]]  # (found, planted) by kind
    nearest_honest: list[tuple[str, str, float]]  # (image, source, score) of the honest images that come nearest
    control: Control | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        limit = self.limit
        return {
            "images": self.images,
            "unsearched": self.unsearched,
            "copies": [finding.as_dict() for finding in self.findings],
            "of_controls": self.of_controls,
            "threshold": None if limit is None else limit.score,
            "threshold_is_uncertain": None if limit is None else limit.is_uncertain,
            "patients": None if limit is None else limit.patients,
            "false_positives": None if limit is None else limit.false_positives,
            "recall_of_all": _share(*np.sum(list(self.recall.values()) or [(0, 0)], axis=0).tolist()),
            "recall": {kind: _share(*counts) for kind, counts in self.recall.items()},
            "nearest_honest": [list(each) for each in self.nearest_honest],
            "control_group": None if self.control is None else self.control.as_dict(),
        }


def _share(found: int, of: int) -> dict[str, float | int] | None:
    if not of:
        return None
    low, high = wilson(found, of)
    return {"value": found / of, "low": low, "high": high, "n": of}


def assess(
    trained: Sequence[Picture],
    controls: Sequence[Picture],
    synthetic: Iterable[Picture],
    campaign_seed: int,
    effort: Effort = Effort(),
    tick: Tick = lambda: None,
) -> Memorization:
    """Search for copies of real images among synthetic ones.

    Args:
        trained: real images that the generator was trained on.
        controls: real images of patients that it was not trained on; may be none.
        synthetic: of any modality.
        campaign_seed: chooses which images are asked about.
        effort: how many.
        tick: called before each image is looked at.
    """
    made: dict[str, list[Picture]] = {}
    for picture in synthetic:
        made.setdefault(picture.modality, []).append(picture)
    asked, unsearched = dict[str, Asked](), dict[str, str]()
    for modality, pictures in made.items():
        real = [one for one in (*trained, *controls) if one.modality == modality]
        if not any(one.modality == modality for one in trained):
            unsearched[modality] = "there are no real images of it"
            continue
        library = Library(real, tick)
        known = honest(library, effort.honest, campaign_seed, tick)
        if known is None:
            unsearched[modality] = f"{len(real)} real images of {len(set(library.patients))} patients are too few"
            continue
        matches = list(library.search((Query(picture.pixels) for picture in pictures), tick))
        asked[modality] = Asked(library, known, pictures, matches)
    knowns = [each.known for each in asked.values() if each.known is not None]
    limit = threshold(knowns) if knowns else None
    found, recall = list[Finding](), dict[str, tuple[int, int]]()
    for each in asked.values():
        assert each.known is not None and limit is not None, "only such modalities were asked"
        found += findings(each.library, each.known, limit, each.pictures, each.matches)
        counts = planted_recall(each.library, each.known, limit, effort.planted, campaign_seed, tick)
        recall = {kind: tuple(np.add(recall.get(kind, (0, 0)), counts[kind]).tolist()) for kind in counts}
    never = {picture.name for picture in controls}
    real_ones = sorted((one for one in found if one.source not in never), key=lambda one: -one.score)
    return Memorization(
        images=sum(len(each.pictures) for each in asked.values()),
        unsearched=unsearched,
        findings=real_ones,
        of_controls=len(found) - len(real_ones),
        limit=limit,
        recall=recall,
        nearest_honest=_nearest(knowns),
        control=_control(asked.values(), trained, controls, campaign_seed),
    )


def _nearest(knowns: Sequence[Honest]) -> list[tuple[str, str, float]]:
    """The honest images that look most like copies: to be seen by eye, before a threshold is believed."""
    rows = [
        (name, source, round(float(score), 3))
        for known in knowns
        for name, source, score in zip(known.names, known.sources, known.crossed, strict=True)
    ]
    best: dict[tuple[str, str], float] = {}
    for name, source, score in rows:
        pair = (min(name, source), max(name, source))
        best[pair] = max(score, best.get(pair, score))
    ordered = sorted(best.items(), key=lambda item: -item[1])[:_HONEST_SHOWN]
    return [(*pair, score) for pair, score in ordered]


def _control(
    asked: Iterable[Asked], trained: Sequence[Picture], controls: Sequence[Picture], campaign_seed: int
) -> Control | None:
    nearest = [_by_patient(one) for each in asked for one in each.matches]
    return control_group(nearest, _patients(trained), _patients(controls), campaign_seed)


def _by_patient(one: Match) -> dict[str, float]:
    best: dict[str, float] = {}
    for source in one.registered:
        best[source.patient] = max(source.overall, best.get(source.patient, 0.0))
    return best


def _patients(pictures: Sequence[Picture]) -> Mapping[str, str]:
    return {picture.patient: picture.modality for picture in pictures}
