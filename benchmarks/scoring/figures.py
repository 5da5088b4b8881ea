"""A figure of the table: its value over all seeds, its interval, and how it differs from seed to seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from medsyn.models.scores import Interval
from medsyn.training.scorers.evidence import Statistic, interval


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    interval: Interval  # of all seeds together, from a bootstrap over groups
    by_seed: list[float]
    aim: str

    def cells(self) -> list[str]:
        """What is printed."""
        its, seeds = self.interval, np.array(self.by_seed)
        spread = f"{seeds.mean():.3f} ± {seeds.std(ddof=1):.3f}" if len(seeds) > 1 else "-"
        return [self.name, _shown(its.value), f"{_shown(its.low)} .. {_shown(its.high)}", str(its.n), spread, self.aim]


def figure(
    name: str,
    aim: str,
    seeds: np.ndarray,
    groups: np.ndarray,
    statistic: Callable[[np.ndarray], Statistic],
) -> Figure:
    """A figure of N values.

    Args:
        name: what it is.
        aim: what it should be.
        seeds: int [N], the seed that each value belongs to.
        groups: str [N], whole ones are drawn in the bootstrap.
        statistic: of the values at given places (int64), see `medsyn.training.scorers.evidence`.
    """
    whole = interval(groups, statistic(np.arange(len(groups))))
    each = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds)]
    values = [float(statistic(places)(np.ones((1, len(places))))[0]) for places in each]
    return Figure(name, whole, [value for value in values if np.isfinite(value)], aim)


def worst(name: str, aim: str, figures: Sequence[Figure], highest: bool = False) -> Figure:
    """The lowest of some figures (or the highest), under its own name."""
    known = [one for one in figures if one.interval.value is not None]
    if not known:
        return Figure(f"{name}: none", Interval(), [], aim)
    chosen = sorted(known, key=lambda one: one.interval.value or 0.0)[-1 if highest else 0]
    return Figure(f"{name}: {chosen.name}", chosen.interval, chosen.by_seed, aim)


def show(console: Console, title: str, figures: Sequence[Figure]) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "95 % interval", "groups", "seeds: mean ± sd", "aim"):
        table.add_column(column)
    for one in figures:
        table.add_row(*one.cells())
    console.print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
