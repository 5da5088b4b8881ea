"""The arms of a campaign: ways of making images of the same prompts from the same seeds, named by `generation.modes`.

An arm is a UNet, and whether the Selector and the Policy choose. Arms that differ in one of the two show what that step
gave, because their attempts have the same seeds. This module knows no configuration and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

Weights = Literal["pretrained", "finetuned", "aligned"]  # in the order in which one is made from another
Mode = Literal["baseline", "filtered", "pretrained", "finetuned", "finetuned-filtered", "aligned"]

MODES: tuple[str, ...] = get_args(Mode)
FILTERING = ("filtered", "finetuned-filtered")
_ORDER: tuple[str, ...] = get_args(Weights)
WEIGHTS_IN_WORDS = {"pretrained": "pretrained", "finetuned": "fine-tuned", "aligned": "aligned"}
_TITLES = {
    "baseline": "Baseline",
    "filtered": "Filtered",
    "pretrained": "Pretrained",
    "finetuned": "Fine-tuned",
    "finetuned-filtered": "Fine-tuned, filtered",
    "aligned": "Aligned",
}


@dataclass(frozen=True)
class Arm:
    """One way of making images."""

    mode: str
    weights: Weights  # the UNet that samples
    filters: bool  # whether the scorers choose among attempts; if not, attempt 0 is the image

    @property
    def step(self) -> tuple[int, bool]:
        """How far along the campaign the arm is: what it samples with, and whether that is filtered."""
        return _ORDER.index(self.weights), self.filters


def filters(mode: str) -> bool:
    """Whether the scorers choose the images of a mode."""
    return mode in FILTERING


def title(mode: str) -> str:
    """The name of a mode for people; a name that is none as it is."""
    return _TITLES.get(mode, mode)


def arm_of(mode: str, baseline: Weights, best: Weights) -> Arm:
    """What a mode's name stands for.

    Args:
        mode: one of `MODES`.
        baseline: what `baseline` samples with (`generation.baseline_model`).
        best: what `filtered` samples with: the last weights that the campaign makes.
    """
    weights: dict[str, Weights] = {
        "baseline": baseline,
        "filtered": best,
        "pretrained": "pretrained",
        "finetuned": "finetuned",
        "finetuned-filtered": "finetuned",
        "aligned": "aligned",
    }
    return Arm(mode, weights[mode], filters(mode))


def same(arms: Iterable[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """The pairs of arms that would make the same images."""
    return ((one, other) for one, other in combinations(arms, 2) if one.step == other.step)


def steps(arms: Iterable[Arm]) -> list[tuple[Arm, Arm, str]]:
    """What can be told apart: pairs of arms, before and after, and the name of what lies between them.

    Neighbours that differ in the UNet alone or in the filter alone, and at the end the first and the last arm, if
    they differ in both or have more than one step between them.
    """
    ordered = sorted(arms, key=lambda arm: arm.step)
    found = [
        (before, after, name)
        for place, before in enumerate(ordered)
        for after in ordered[place + 1 :]
        if (name := _single(before, after, ordered))
    ]
    if len(ordered) > 1 and (ordered[0], ordered[-1]) not in [(before, after) for before, after, _ in found]:
        found.append((ordered[0], ordered[-1], _together(ordered[0], ordered[-1])))
    return found


def _single(before: Arm, after: Arm, arms: Iterable[Arm]) -> str | None:
    """The one step between two arms; None if there are more, or another arm lies between."""
    if before.weights == after.weights:
        return f"filter on the {WEIGHTS_IN_WORDS[before.weights]} model"
    if before.filters != after.filters:
        return None
    between = [one for one in arms if one.filters == before.filters and before.step < one.step < after.step]
    return None if between else _together(before, after) + (", both filtered" if before.filters else "")


def _together(before: Arm, after: Arm) -> str:
    """What lies between two arms, all of it."""
    passed = _ORDER[before.step[0] + 1 : after.step[0] + 1]
    parts = [{"finetuned": "fine-tuning", "aligned": "alignment"}[one] for one in passed]
    parts += ["filter"] if after.filters and not before.filters else []
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
