"""How far the ratings of a table of sessions can be trusted: of each rater, and between raters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medsyn.rating.agreement import (
    RESAMPLES,
    Estimate,
    bootstrap,
    detectability,
    estimate,
    gwet_ac2,
    icc,
    krippendorff_alpha,
    slope,
    weighted_kappa,
)
from medsyn.rating.sessions import CASE, PAIR
from medsyn.seeds import seed

if TYPE_CHECKING:
    import pandas as pd

TOO_FAST, TOO_SLOW = 1.0, 60.0  # seconds a case: no look at the image; away from it
MANY = 0.1  # share of cases that were too fast, from which on a rater is warned about
FEW = 10  # repeats, decoys or common images below which a figure says next to nothing

Warning = str


@dataclass(frozen=True)
class RaterFigures:
    """What is known of one rater."""

    rater: str
    cases: int  # rated or answered "not sure", repeats included
    not_sure: int
    pairs: int
    ratings: dict[int, int]  # how often 1, 2 and 3
    repeat_kappa: Estimate  # first against second time, quadratic weights
    repeat_icc: Estimate
    decoys: int
    decoy_d: Estimate  # how much better real images are rated than generated ones: d_a
    drift: Estimate  # of the rating, from the first case of the session to the last
    seconds: float  # median a case
    faster: float  # the last quarter's median over the first one's
    too_fast: float  # share of cases
    too_slow: float
    flags: list[Warning] = field(default_factory=list)


@dataclass(frozen=True)
class Between:
    """How far raters agree with one another; over all images, or those of one modality."""

    raters: int
    images: int  # rated by two or more
    alpha: Estimate
    ac2: Estimate
    kappas: dict[str, float]  # "A, B": of two raters, quadratic weights
    pair_agreement: Estimate  # share of answers to the same pair that are the same


@dataclass(frozen=True)
class Agreement:
    """The whole report."""

    raters: list[RaterFigures]
    overall: Between
    by_modality: dict[str, Between]
    warnings: list[Warning]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what is not known is None."""
        known: dict[str, Any] = _without_nan(asdict(self))
        return known


def assess(sessions: pd.DataFrame, resamples: int = RESAMPLES) -> Agreement:
    """Assess the ratings of a table of sessions (`medsyn.rating.sessions.read_sessions`).

    The same table gives the same figures.
    """
    cases = sessions[sessions.kind == CASE].copy()
    volume = cases["volume"].astype("string").fillna("")
    cases["image"] = cases["file"] + "\n" + cases["member"].fillna("") + "\n" + volume
    pairs = sessions[sessions.kind == PAIR]
    raters = [
        _of_rater(name, cases[cases.rater == name], pairs[pairs.rater == name], resamples)
        for name in sorted(set(sessions.rater))
    ]
    first_times = cases[cases.repeat_of.isna() & cases.rating.notna()]
    overall = _between("all", first_times, pairs, resamples)
    by_modality = {
        str(name): _between(str(name), its, pairs[pairs.modality == name], resamples)
        for name, its in first_times.groupby("modality")
    }
    return Agreement(raters, overall, by_modality, list(_warnings(raters, overall, by_modality)))


def _of_rater(name: str, cases: pd.DataFrame, pairs: pd.DataFrame, resamples: int) -> RaterFigures:
    rated = cases[cases.rating.notna()].sort_values(["set", "order"])
    first = rated[rated.repeat_of.isna()]
    twice = _twice(rated)
    decoy = first.decoy.to_numpy(bool)  # its file may not say of an image of the source that it was generated
    real, made = (first.rating.to_numpy(float)[which] for which in (decoy, ~decoy))
    seconds = cases.sort_values(["set", "order"]).seconds.to_numpy()
    quarter = max(1, len(seconds) // 4)
    figures = RaterFigures(
        rater=name,
        cases=len(cases),
        not_sure=int(cases.not_sure.sum()),
        pairs=len(pairs),
        ratings={level: int((rated.rating == level).sum()) for level in (1, 2, 3)},
        repeat_kappa=estimate(weighted_kappa, twice, seed("repeat", name), resamples),
        repeat_icc=estimate(icc, twice, seed("repeat", name), resamples),
        decoys=len(real),
        decoy_d=_decoy_d(real, made, seed("decoy", name), resamples),
        drift=_drift(first, seed("drift", name), resamples),
        seconds=_median(seconds),
        faster=_median(seconds[-quarter:]) / max(_median(seconds[:quarter]), 1e-3),
        too_fast=float((seconds < TOO_FAST).sum() / max(len(seconds), 1)),
        too_slow=float((seconds > TOO_SLOW).sum() / max(len(seconds), 1)),
    )
    figures.flags.extend(_flags(figures))
    return figures


def _median(seconds: np.ndarray) -> float:
    return float(np.median(seconds)) if len(seconds) else math.nan


def _twice(rated: pd.DataFrame) -> np.ndarray:
    """Ratings of repeated cases, float [N, 2]: the first one shown and the second."""
    repeats = rated[rated.repeat_of.notna()]
    both = repeats.merge(rated, left_on=["set", "repeat_of"], right_on=["set", "item"], suffixes=("_second", "_first"))
    swapped = (both.order_first > both.order_second).to_numpy(bool)
    table = both[["rating_first", "rating_second"]].to_numpy(float)
    table[swapped] = table[swapped, ::-1]
    return table


def _decoy_d(real: np.ndarray, made: np.ndarray, of: int, resamples: int) -> Estimate:
    rows = np.concatenate([np.stack([real, np.ones_like(real)], 1), np.stack([made, np.zeros_like(made)], 1)])

    def statistic(drawn: np.ndarray) -> float:
        return detectability(drawn[drawn[:, 1] == 1, 0], drawn[drawn[:, 1] == 0, 0])

    if len(real) == 0 or len(made) == 0:
        return Estimate(math.nan, math.nan, math.nan, len(real))
    found = bootstrap(statistic, rows, of, resamples)
    return Estimate(found.value, found.low, found.high, len(real))


def _drift(first: pd.DataFrame, of: int, resamples: int) -> Estimate:
    rows = first[["order", "rating"]].to_numpy(float)
    if len(rows) < 2:
        return Estimate(math.nan, math.nan, math.nan, len(rows))
    return bootstrap(lambda drawn: slope(drawn[:, 0], drawn[:, 1]), rows, of, resamples)


def _between(what: str, rated: pd.DataFrame, pairs: pd.DataFrame, resamples: int) -> Between:
    wide = rated.assign(rating=rated.rating.astype(float)).pivot_table(
        index="image", columns="rater", values="rating", aggfunc="first"
    )
    table = wide.to_numpy(float) if len(wide) else np.empty((0, 0))
    names = [str(name) for name in wide.columns]
    kappas = {
        f"{names[one]}, {names[other]}": weighted_kappa(table[:, [one, other]])
        for one in range(len(names))
        for other in range(one + 1, len(names))
    }
    return Between(
        raters=len(names),
        images=int(((~np.isnan(table)).sum(axis=1) >= 2).sum()) if len(names) > 1 else 0,
        alpha=estimate(krippendorff_alpha, table, seed("alpha", what), resamples),
        ac2=estimate(gwet_ac2, table, seed("ac2", what), resamples),
        kappas=kappas,
        pair_agreement=_pair_agreement(pairs, seed("pairs", what), resamples),
    )


def _pair_agreement(pairs: pd.DataFrame, of: int, resamples: int) -> Estimate:
    """The share of same answers among all that two raters gave to one pair."""
    rows = []
    for _, answers in pairs[pairs.preferred.notna()].groupby(["set", "item"]).preferred:
        counts = answers.value_counts().to_numpy(float)
        total = counts.sum()
        if total > 1:
            rows.append((float((counts * (counts - 1)).sum()), total * (total - 1)))
    if len(rows) < 2:
        return Estimate(math.nan, math.nan, math.nan, len(rows))
    return bootstrap(lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum()), np.array(rows), of, resamples)


def _flags(figures: RaterFigures) -> Iterable[Warning]:
    """What makes a rater's ratings doubtful."""
    kappa = figures.repeat_kappa
    if kappa.is_near_chance and kappa.n >= FEW:
        yield f"agrees with their own earlier ratings hardly better than by chance (kappa {show(kappa)})"
    if figures.too_fast > MANY:
        yield f"answered {figures.too_fast:.0%} of the cases in under {TOO_FAST:g} s"
    used = [level for level, number in figures.ratings.items() if number]
    if len(used) == 1 and figures.cases >= FEW:
        yield f"gave every image a {used[0]}"
    if figures.drift.low > 0 or figures.drift.high < 0:
        way = "higher" if figures.drift.value > 0 else "lower"
        yield f"rated {way} towards the end of the session (by {show(figures.drift)})"


def _warnings(raters: Sequence[RaterFigures], overall: Between, modalities: dict[str, Between]) -> Iterable[Warning]:
    for one in raters:
        yield from (f"{one.rater} {flag}" for flag in one.flags)
    if len(raters) == 0:
        yield "there are no answers"
    elif overall.raters == 0:
        yield "there are no ratings: of pairs only the agreement between raters is known"
    elif overall.raters < 2:
        yield "one rater only: whether another expert would agree is not known"
    elif overall.images < FEW:
        yield f"only {overall.images} images were rated by two raters: whether they agree is not known"
    for name, between in ({"all images": overall} | modalities).items():
        if between.alpha.is_near_chance and between.ac2.is_near_chance and between.images >= FEW:
            yield (
                f"raters agree hardly better than by chance on {name} (alpha {show(between.alpha)}): agree on "
                "examples of 1, 2 and 3 first, or ask for pairs, before a Selector is trained on these"
            )


def show(one: Estimate) -> str:
    """The estimate as text: `.61 [.48, .72]`, or a dash."""
    if math.isnan(one.value):
        return "-"
    interval = "" if math.isnan(one.low) else f" [{one.low:.2f}, {one.high:.2f}]"
    return f"{one.value:.2f}{interval}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
