"""What is asked of alignment, and when it counts as reached: by the interval where one is compared with another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aligning.figures import Combine, Estimate, gain, of_arm, share

BEFORE, ALIGNED, TWICE = "before", "aligned", "aligned twice"
BEST_OF, PLAIN, PERFECT = "best of 4", "plain fine-tune", "good phantoms"
WORSE_BY = 0.02  # of a share, and
KID_WORSE_BY = 0.02  # of a distance: what counts as no worse


@dataclass(frozen=True)
class Aim:
    """One line of the table."""

    text: str
    arms: tuple[str, ...]  # that it needs
    combine: Combine
    is_reached: Callable[[Estimate], bool]


def _above(limit: float) -> Callable[[Estimate], bool]:
    return lambda found: found.value >= limit


def _surely_above(limit: float) -> Callable[[Estimate], bool]:
    return lambda found: found.low > limit


def _surely_below(limit: float) -> Callable[[Estimate], bool]:
    return lambda found: found.high < limit


AIMS: dict[str, Aim] = {
    "right: aligned - before": Aim("+.15", (ALIGNED, BEFORE), gain(ALIGNED, BEFORE, "right"), _above(0.15)),
    "good: aligned": Aim(".95", (ALIGNED,), of_arm(ALIGNED, "good"), _above(0.95)),
    "good: aligned - best of 4": Aim("above 0", (ALIGNED, BEST_OF), gain(ALIGNED, BEST_OF, "good"), _surely_above(0)),
    "good: aligned - plain": Aim("above 0", (ALIGNED, PLAIN), gain(ALIGNED, PLAIN, "good"), _surely_above(0)),
    "right: aligned - plain": Aim(
        f"not below -{WORSE_BY}", (ALIGNED, PLAIN), gain(ALIGNED, PLAIN, "right"), _surely_above(-WORSE_BY)
    ),
    "KID: aligned - plain": Aim(
        f"not above {KID_WORSE_BY}", (ALIGNED, PLAIN), gain(ALIGNED, PLAIN, "KID"), _surely_below(KID_WORSE_BY)
    ),
    "recall: aligned - plain": Aim(
        f"not below -{WORSE_BY}", (ALIGNED, PLAIN), gain(ALIGNED, PLAIN, "recall"), _surely_above(-WORSE_BY)
    ),
    "KID: aligned / before": Aim(
        "at most .66", (ALIGNED, BEFORE), share(ALIGNED, BEFORE, "KID"), lambda found: found.value <= 0.66
    ),
    "recall: aligned / good phantoms": Aim(".95", (ALIGNED, PERFECT), share(ALIGNED, PERFECT, "recall"), _above(0.95)),
    "diversity: aligned / good phantoms": Aim(
        ".95", (ALIGNED, PERFECT), share(ALIGNED, PERFECT, "diversity"), _above(0.95)
    ),
    "accepted: aligned - before": Aim(
        "above 0", (ALIGNED, BEFORE), gain(ALIGNED, BEFORE, "accepted"), _surely_above(0)
    ),
    "good: second round - first": Aim("above 0", (TWICE, ALIGNED), gain(TWICE, ALIGNED, "good"), _surely_above(0)),
    "KID: second round - first": Aim(
        f"not above {KID_WORSE_BY}", (TWICE, ALIGNED), gain(TWICE, ALIGNED, "KID"), _surely_below(KID_WORSE_BY)
    ),
    "recall: second round - first": Aim(
        f"not below -{WORSE_BY}", (TWICE, ALIGNED), gain(TWICE, ALIGNED, "recall"), _surely_above(-WORSE_BY)
    ),
}
