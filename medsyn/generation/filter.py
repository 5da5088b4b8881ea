"""Which candidate becomes the image: a rule over one item's own attempts, in order. Pure functions, no tensors.

An item is a prompt and a replicate. Its candidates are attempts 0, 1, 2, … The item is settled at the first attempt
with `num_candidates` passing candidates, or when `max_attempts` are spent; the passing candidate with the best
Policy score wins. Nothing but the item's own attempts decides, so sharding and neighbours change no outcome.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from medsyn.arms import filters
from medsyn.config import GenerationSection

# why a candidate is not the image
NON_FINITE = "non-finite"
SELECTOR_LOW = "selector-below-threshold"
POLICY_LOW = "policy-below-minimum"
OUTRANKED = "outranked"  # passed, but the item's image is one with a better Policy score
SURPLUS = "surplus"  # made to fill a batch after the item was settled: never considered

# what became of an item
ACCEPTED = "accepted"
UNFILTERED = "unfiltered"  # there is no filter to pass
FAILED = "exhausted-failed"
SKIPPED = "exhausted-skipped"
KEPT_BEST = "exhausted-kept-best"

_ON_EXHAUSTED = {"fail": FAILED, "skip": SKIPPED, "keep-best": KEPT_BEST}


@dataclass(frozen=True)
class Rule:
    """What passes, how many must, and what happens to an item with none that does."""

    num_candidates: int
    max_attempts: int
    quality_threshold: float | None  # None: no filter
    min_policy_score: float | None
    on_exhausted: Literal["fail", "skip", "keep-best"]

    @classmethod
    def of(cls, section: GenerationSection, mode: str, threshold: float | None = None) -> Rule:
        """The rule of a mode: as configured where scorers choose, elsewhere attempt 0 is the image.

        Args:
            section: what is configured.
            mode: one of `medsyn.arms.MODES`.
            threshold: the Selector's own for the modality, which counts where `quality_threshold` is `auto`.
        """
        if not filters(mode):
            return cls(1, 1, None, None, section.on_exhausted)
        least = threshold if section.quality_threshold == "auto" else section.quality_threshold
        assert least is not None, "where auto is configured, the Selector is asked"
        return cls(
            section.num_candidates,
            section.max_attempts,
            least,
            section.min_policy_score,
            section.on_exhausted,
        )


@dataclass(frozen=True)
class Candidate:
    """One sampled image before the filter."""

    attempt: int
    seed: int
    finite: bool = True  # every pixel and every score is a number
    selector: float | None = None  # None without scorers
    policy: float | None = None
    precision: str = "float32"  # what the UNet computed in
    selector_spread: float | None = None  # how much the members of each scorer differ
    policy_spread: float | None = None
    unfamiliar: bool | None = None  # far from every image that the Selector was trained on


def refusal(candidate: Candidate, rule: Rule) -> str | None:
    """Why `candidate` does not pass, or None if it does."""
    if not candidate.finite:
        return NON_FINITE
    if rule.quality_threshold is None:
        return None
    if candidate.selector is None or candidate.selector < rule.quality_threshold:
        return SELECTOR_LOW
    if rule.min_policy_score is not None and (candidate.policy is None or candidate.policy < rule.min_policy_score):
        return POLICY_LOW
    return None


def _rank(candidate: Candidate, rule: Rule) -> tuple[bool, bool, float, float]:
    """Passing ones first, then those that clear the Selector, both by Policy score; then by Selector score."""
    reason = refusal(candidate, rule)
    clears_selector = reason in {None, POLICY_LOW}
    policy, selector = candidate.policy or 0.0, candidate.selector or 0.0
    return reason is None, clears_selector, policy if clears_selector else selector, policy


@dataclass
class Trial:
    """One item's way through the filter: candidates are added in order until it is settled."""

    rule: Rule
    kind: Hashable = None  # what must be equal within a batch (the number of steps, say)
    candidates: list[Candidate] = field(default_factory=list)
    considered: int = 0  # this many candidates count; later ones are surplus
    passed: int = 0
    favourite: Candidate | None = None  # the winner if it ended now; ties go to the earlier attempt
    under_way: int = 0  # attempts behind `candidates` that are being made

    @property
    def settled(self) -> bool:
        """Whether no further candidate can change the outcome."""
        return self.passed >= self.rule.num_candidates or self.considered >= self.rule.max_attempts

    @property
    def next_attempts(self) -> range:
        """The attempts that may still be made."""
        first = len(self.candidates) + self.under_way
        return range(first, first if self.settled else self.rule.max_attempts)

    @property
    def still_needed(self) -> int:
        """How many of `next_attempts` must be made before the item can be settled, however all turn out."""
        wanted = self.rule.num_candidates - self.passed - self.under_way
        return max(0, min(wanted, len(self.next_attempts))) if not self.settled else 0

    def add(self, candidate: Candidate) -> None:
        """Take the next attempt into account; once the item is settled it is only recorded."""
        assert candidate.attempt == len(self.candidates), "attempts come in order"
        settled = self.settled
        self.candidates.append(candidate)
        if settled:
            return
        self.considered += 1
        self.passed += refusal(candidate, self.rule) is None
        if not candidate.finite:
            return
        if self.favourite is None or _rank(candidate, self.rule) > _rank(self.favourite, self.rule):
            self.favourite = candidate

    @property
    def reason(self) -> str:
        """What became of a settled item."""
        if self.passed:
            return UNFILTERED if self.rule.quality_threshold is None else ACCEPTED
        if self.favourite is None and self.rule.on_exhausted == "keep-best":
            return SKIPPED  # no attempt gave a picture: there is no best to keep
        return _ON_EXHAUSTED[self.rule.on_exhausted]

    @property
    def winner(self) -> Candidate | None:
        """The candidate of a settled item that becomes its image, if there is one."""
        return self.favourite if self.passed or self.rule.on_exhausted == "keep-best" else None

    def records(self) -> list[dict[str, Any]]:
        """Every candidate of a settled item, and why it is not the image."""
        return [
            {
                **vars(candidate),
                "passed": refusal(candidate, self.rule) is None,
                "reason": self.why_not(candidate),
                "chosen": candidate is self.winner,
            }
            for candidate in self.candidates
        ]

    def rejected(self, most: int) -> list[Candidate]:
        """The first `most` candidates of a settled item that were examined, have a picture and are not its image.

        The first ones, because they are a fair sample of all: an attempt's number says nothing about its scores.
        """
        examined = self.candidates[: self.considered]
        return [candidate for candidate in examined if candidate.finite and candidate is not self.winner][:most]

    def why_not(self, candidate: Candidate) -> str | None:
        """Why a candidate of a settled item is not its image; None for the image."""
        if candidate.attempt >= self.considered:
            return SURPLUS
        if reason := refusal(candidate, self.rule):
            return reason
        return None if candidate is self.winner else OUTRANKED


def next_batch(trials: Iterable[Trial], size: int) -> list[tuple[int, int]]:
    """At most `size` (position of the trial, attempt) to make next, all of one kind; empty when all are settled.

    Attempts that no outcome can make superfluous come first, those of the first trials before all others, so that few
    trials are under way at a time. Only where there are not enough of them go the remaining places, which would be
    padding, to the next attempts of unsettled items, in the hope that they are needed; the others end up as surplus.

    Args:
        trials: one per item; read only until the batch is full.
        size: places in a batch.
    """
    certain: list[tuple[int, int]] = []
    early: list[tuple[int, int, int]] = []
    kind: Hashable = None
    for position, trial in enumerate(trials):
        if trial.settled:
            continue
        if not certain:  # an unsettled trial needs an attempt, so this is the first
            kind = trial.kind
        if trial.kind != kind:
            continue
        for ahead, attempt in enumerate(trial.next_attempts[:size]):
            if ahead < trial.still_needed:
                certain.append((position, attempt))
            else:
                early.append((ahead, position, attempt))
        if len(certain) >= size:
            return certain[:size]
    return (certain + [(position, attempt) for _, position, attempt in sorted(early)])[:size]
