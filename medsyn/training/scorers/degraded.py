"""Pairs that need no expert: a good image against graded damage of itself.

What is drawn for an image depends on the campaign's seed and on the image's content alone, so its pairs are the same
in every stage, whatever other images there are, and whichever of them are held out. A seam to another picture is made
with the image's own other parts for the same reason.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsyn import disk
from medsyn.data.degradations.graded import LEAST, amount, graded
from medsyn.data.degradations.kinds import family_of, kinds_of
from medsyn.seeds import seed
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.remembered import Remembered

VERSION = 1  # raise it when the same arguments give other strengths
MILD = (0.06, 0.3)  # severities, uniform between the two
SEVERE = (0.5, 1.0)
APART = 1.5  # a severe change is at least this many times a mild one: else the two are no pair
MOST_OFFSET = 10 / 255  # by which a background may be brighter
GAIN = (0.92, 1.04)
POOR = 0.2  # 1 - SSIM from which no expert would call the image acceptable


@dataclass(frozen=True)
class _Grades:
    """One kind of damage of one image."""

    mild: Tensor | None  # uint8 [3, R, R]; None: it changed nothing
    severe: Tensor | None
    poor: bool  # `severe` is
    strengths: tuple[float, float]


def degraded_comparisons(
    pixels: Tensor,
    modality: Sequence[str] | np.ndarray,
    group: Sequence[str] | np.ndarray,
    keys: Sequence[str],
    campaign_seed: int,
    per_image: int,
    kinds: Collection[str] | None = None,
    remembered: Remembered | None = None,
) -> Comparisons:
    """Every image is better than its mild damage, and that better than the severe one of the same kind.

    Args:
        pixels: uint8 [N, 3, R, R], good images.
        modality: str [N]; decides which kinds an image can have.
        group: str [N], see `Comparisons`; damage of an image is of its group.
        keys: [N], what identifies each image's content.
        campaign_seed: another seed draws other kinds, severities and places.
        per_image: kinds of each image, at most, all of different families.
        kinds: only these; all unless given.
        remembered: where strengths are, and are put, once they are found: most of the work.

    Returns:
        The comparisons. The first N of its images are `pixels`, and the next N the same with harmless changes (a
        background that is a few grey levels brighter), which are as good: pairs start from either. A kind that does
        not change an image makes no pair.
    """
    images, of = list(pixels), list(range(len(pixels)))
    for image, key in zip(pixels, keys, strict=True):
        images.append(_harmless(image, np.random.default_rng(seed("harmless", campaign_seed, key))))
    of += of
    pairs: list[tuple[int, int, str, bool]] = []
    for number, (image, its_modality, key) in enumerate(zip(pixels, modality, keys, strict=True)):
        for kind in _draw_kinds(str(its_modality), key, campaign_seed, per_image, kinds):
            rng = np.random.default_rng(seed("degraded", campaign_seed, key, kind))
            name = disk.fingerprint(["strengths", VERSION, campaign_seed, key, kind])
            known = None if remembered is None else remembered.get(name)
            grades = _grades(image, kind, rng, None if known is None else known.tolist())
            if remembered is not None and known is None:
                remembered.put(name, torch.tensor(grades.strengths, dtype=torch.float64))
            better_ones = [number + len(pixels) * int(rng.random() < 0.5)]
            for damaged, poor in ((grades.mild, False), (grades.severe, grades.poor)):
                if damaged is None:
                    continue
                pairs += [(other, len(images), kind, poor) for other in better_ones]
                better_ones.append(len(images))
                images.append(damaged)
                of.append(number)
    place = np.array(of, dtype=np.int64)
    return Comparisons(
        pixels=torch.stack(images) if images else pixels,
        modality=np.asarray(modality, dtype=str)[place],
        group=np.asarray(group, dtype=str)[place],
        better=np.array([pair[0] for pair in pairs], dtype=np.int64),
        worse=np.array([pair[1] for pair in pairs], dtype=np.int64),
        kind=np.array([pair[2] for pair in pairs], dtype=str),
        severe=np.array([pair[3] for pair in pairs], dtype=bool),
        weight=np.ones(len(pairs), dtype=np.float32),
    )


def _draw_kinds(
    modality: str, key: str, campaign_seed: int, per_image: int, kinds: Collection[str] | None
) -> list[str]:
    """The kinds of one image: families in random order, and one kind of each."""
    rng = np.random.default_rng(seed("degraded", campaign_seed, key))
    families: dict[str, list[str]] = {}
    for kind in kinds_of(modality):
        if kinds is None or kind in kinds:
            families.setdefault(family_of(kind), []).append(kind)
    order = rng.permutation(sorted(families))[:per_image]
    return [str(rng.choice(families[family])) for family in order]


def _grades(image: Tensor, kind: str, rng: np.random.Generator, strengths: Sequence[float] | None) -> _Grades:
    """A mild and a severe damage of an image [3, R, R], in the same places; their strengths may be known."""
    clean = _between_levels(image, rng)
    mild_severity, severe_severity = rng.uniform(*MILD), rng.uniform(*SEVERE)
    turned = torch.rot90(clean, int(rng.integers(1, 4)), dims=(-2, -1))
    state = rng.integers(2**63)
    made = [
        graded(clean, kind, severity, np.random.default_rng(state), turned, strength)
        for severity, strength in zip((mild_severity, severe_severity), strengths or (None, None), strict=True)
    ]
    mild, severe = ((damaged * 255).round().to(torch.uint8) for damaged, _ in made)
    little, much = amount(clean, mild.float() / 255), amount(clean, severe.float() / 255)
    has_mild = little >= LEAST
    has_severe = much >= LEAST and (not has_mild or much >= APART * little)
    found = made[0][1], made[1][1]
    return _Grades(mild if has_mild else None, severe if has_severe else None, much >= POOR, found)


def _between_levels(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An 8-bit image [3, R, R] as values 0..1 from which it would be rounded.

    Without this a gain leaves gaps in the histogram, which no damage of a real image has: it is rounded once.
    """
    rounding = torch.from_numpy(rng.uniform(-0.49, 0.49, image.shape[1:]).astype(np.float32))
    return ((image.float() + rounding) / 255).clamp(0, 1)


def _harmless(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The image with another black and brightness, by less than anyone would call a fault: [3, R, R]."""
    values = _between_levels(image, rng)
    offset, gain, floor = rng.uniform(0, MOST_OFFSET), rng.uniform(*GAIN), rng.uniform(0, MOST_OFFSET)
    values = (values * gain + offset).clamp(min=floor if rng.random() < 0.5 else 0.0, max=1.0)
    return (values * 255).round().to(torch.uint8)
