"""From scores to what is learned: the reward of each candidate, its advantage within its prompt's group, pairs.

The reward is what the scorers are sure of: both ensembles' means minus `align.spread_weight` of their members' spreads,
as a product, for an image must be good *and* show its prompt. So what the members disagree on, which is where a
generator learns to please a scorer and nobody else, earns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

BEST, WORST, LEFT_OUT = "best", "worst", "left out"
_EASE = 1e-6


@dataclass(frozen=True)
class Rewards:
    """The rewards of N candidates of several prompts."""

    reward: np.ndarray  # float64 [N], 0..1; NaN for one that is not finite
    error: np.ndarray  # float64 [N], `align.spread_weight` times how much the members disagree on it
    advantage: np.ndarray  # float64 [N]: how far above its group's mean, in spreads of all candidates; 0 for NaN


@dataclass(frozen=True)
class Units:
    """What a step learns from: U units of a candidate, or of a pair of them."""

    rows: np.ndarray  # int64 [U, 1 or 2], candidates; of a pair the better one first
    advantage: np.ndarray  # float64 [U]; 1 for a pair

    def __len__(self) -> int:
        return len(self.rows)


def rewards(scores: Mapping[str, np.ndarray], finite: np.ndarray, group: np.ndarray, spread_weight: float) -> Rewards:
    """The rewards of candidates [N] from `selector`, `selector_spread`, `policy` and `policy_spread`."""
    quality, fit = (
        np.clip(scores[name] - spread_weight * scores[f"{name}_spread"], 0, 1) for name in ("selector", "policy")
    )
    spreads = scores["selector_spread"] * scores["policy"], scores["policy_spread"] * scores["selector"]
    error = spread_weight * np.hypot(*spreads)
    reward = np.where(finite, quality * fit, np.nan)
    known = reward[finite]
    scale = float(known.std()) if len(known) > 1 else 0.0
    advantage = np.zeros(len(reward))
    for number in np.unique(group):
        its = (group == number) & finite
        if its.any() and scale > _EASE:
            advantage[its] = (reward[its] - reward[its].mean()) / scale
    return Rewards(reward, error, advantage)


def pairs(found: Rewards, group: np.ndarray) -> Units:
    """The best candidate of each prompt against its worst; a gap within the reward's own error is no pair."""
    rows = []
    for number in np.unique(group):
        its = np.flatnonzero((group == number) & np.isfinite(found.reward))
        if len(its) < 2:
            continue
        best, worst = its[np.argmax(found.reward[its])], its[np.argmin(found.reward[its])]
        gap, error = found.reward[best] - found.reward[worst], np.hypot(found.error[best], found.error[worst])
        if gap > max(error, _EASE):
            rows.append((best, worst))
    return Units(np.array(rows, dtype=np.int64).reshape(-1, 2), np.ones(len(rows)))


def weighted(found: Rewards) -> Units:
    """Every candidate with its advantage, of at most one spread; those without any teach nothing."""
    rows = np.flatnonzero(np.isfinite(found.reward) & (np.abs(found.advantage) > _EASE))
    return Units(rows[:, None], np.clip(found.advantage[rows], -1, 1))


def accepted(found: Rewards, passed: np.ndarray) -> Units:
    """The candidates that pass the filter and are above the mean of their group."""
    rows = np.flatnonzero(passed & (found.advantage > 0))
    return Units(rows[:, None], np.ones(len(rows)))


def parts(units: Units, found: Rewards) -> list[str]:
    """What became of each candidate: `best`, `worst` or `left out`."""
    told = [LEFT_OUT] * len(found.reward)
    for row, advantage in zip(units.rows.tolist(), units.advantage, strict=True):
        told[row[0]] = BEST if advantage > 0 else WORST
        if len(row) == 2:
            told[row[1]] = WORST
    return told
