from __future__ import annotations

import pytest

from medsyn.config import GenerationSection
from medsyn.generation import filter as rules
from medsyn.generation.filter import Candidate, Rule, Trial, next_batch


def rule(
    num_candidates: int = 1, max_attempts: int = 4, minimum: float | None = None, on_exhausted: str = "skip"
) -> Rule:
    return Rule(num_candidates, max_attempts, 0.6, minimum, on_exhausted)  # type: ignore[arg-type]


def settle(rule: Rule, *scores: tuple[float, float] | None) -> Trial:
    """A trial of candidates with these (selector, policy) scores; None is a picture that is not finite."""
    trial = Trial(rule)
    for attempt, pair in enumerate(scores):
        selector, policy = pair or (None, None)
        trial.add(Candidate(attempt, 1000 + attempt, pair is not None, selector, policy))
    return trial


GOOD, BETTER, BEST, BAD, WORSE = (0.7, 0.3), (0.6, 0.5), (0.8, 0.9), (0.59, 0.9), (0.2, 0.99)


@pytest.mark.parametrize(
    ("settings", "scores", "reason", "winner", "considered"),
    [
        # the first that passes settles it; the threshold itself passes
        ({}, [BETTER], rules.ACCEPTED, 0, 1),
        ({}, [BAD, WORSE, GOOD], rules.ACCEPTED, 2, 3),
        ({}, [None, GOOD], rules.ACCEPTED, 1, 2),
        # a better one after the stop changes nothing
        ({}, [GOOD, BEST], rules.ACCEPTED, 0, 1),
        ({"num_candidates": 2}, [GOOD, BAD, BETTER, BEST], rules.ACCEPTED, 2, 3),
        # the best Policy score among the passing, not among all; ties go to the earlier one
        ({"num_candidates": 2}, [BEST, WORSE, GOOD], rules.ACCEPTED, 0, 3),
        ({"num_candidates": 2}, [(0.6, 0.5), (0.9, 0.5)], rules.ACCEPTED, 0, 2),
        # fewer than num_candidates passed when the attempts are spent: the best of those is accepted
        ({"num_candidates": 3}, [WORSE, GOOD, BETTER, BAD], rules.ACCEPTED, 2, 4),
        # none passed
        ({}, [BAD, WORSE, BAD, BAD], rules.SKIPPED, None, 4),
        ({"on_exhausted": "fail"}, [BAD, WORSE, BAD, BAD], rules.FAILED, None, 4),
        ({"on_exhausted": "keep-best"}, [WORSE, BAD, WORSE, None], rules.KEPT_BEST, 1, 4),
        ({"on_exhausted": "keep-best"}, [None, None, None, None], rules.SKIPPED, None, 4),
        ({"max_attempts": 1}, [BAD], rules.SKIPPED, None, 1),
        # the minimum of the Policy filters too, and it cuts at the minimum itself
        ({"minimum": 0.5}, [GOOD, BETTER], rules.ACCEPTED, 1, 2),
        ({"minimum": 0.99}, [GOOD, BETTER, BEST, WORSE], rules.SKIPPED, None, 4),
        # the best to keep: what clears the Selector, by Policy score, before what does not
        ({"minimum": 0.99, "on_exhausted": "keep-best"}, [WORSE, GOOD, BEST, BAD], rules.KEPT_BEST, 2, 4),
    ],
)
def test_the_rule(settings: dict, scores: list, reason: str, winner: int | None, considered: int) -> None:
    trial = settle(rule(**settings), *scores)
    assert trial.settled
    assert trial.considered == considered
    assert trial.reason == reason
    assert (trial.winner and trial.winner.attempt) == winner
    assert (trial.passed > 0) == (reason == rules.ACCEPTED), "what did not pass is never passed off as accepted"


def test_an_item_is_not_settled_before_its_time() -> None:
    assert not settle(rule(num_candidates=2), GOOD, BAD, BAD).settled
    assert not settle(rule(max_attempts=2), BAD).settled


def test_every_candidate_is_on_record_with_why_it_is_not_the_image() -> None:
    trial = settle(rule(num_candidates=2, max_attempts=9, minimum=0.3), None, BAD, (0.9, 0.1), GOOD, BEST, GOOD)
    records = trial.records()
    assert [record["attempt"] for record in records] == [0, 1, 2, 3, 4, 5]
    assert [record["seed"] for record in records] == [1000, 1001, 1002, 1003, 1004, 1005]
    assert [record["reason"] for record in records] == [
        rules.NON_FINITE,
        rules.SELECTOR_LOW,
        rules.POLICY_LOW,
        rules.OUTRANKED,
        None,
        rules.SURPLUS,
    ]
    assert [record["chosen"] for record in records] == [False, False, False, False, True, False]
    assert [record["passed"] for record in records] == [False, False, False, True, True, True]


def test_a_kept_best_is_chosen_but_says_why_it_did_not_pass() -> None:
    (record,) = settle(rule(max_attempts=1, on_exhausted="keep-best"), BAD).records()
    assert record["chosen"] and not record["passed"] and record["reason"] == rules.SELECTOR_LOW


def test_the_baseline_takes_attempt_0_without_scores() -> None:
    trial = Trial(Rule.of(GenerationSection(), "baseline"))
    assert list(trial.next_attempts) == [0]
    trial.add(Candidate(0, 7))
    assert trial.settled and trial.reason == rules.UNFILTERED and trial.winner == Candidate(0, 7)


def test_a_baseline_picture_that_is_not_finite_is_no_image() -> None:
    trial = Trial(Rule.of(GenerationSection(), "baseline"))
    trial.add(Candidate(0, 7, finite=False))
    assert trial.settled and trial.winner is None and trial.reason == rules.SKIPPED


def test_the_filtered_rule_is_the_configured_one() -> None:
    section = GenerationSection(
        num_candidates=2, max_attempts=5, quality_threshold=0.4, min_policy_score=0.1, on_exhausted="fail"
    )
    assert Rule.of(section, "filtered") == Rule(2, 5, 0.4, 0.1, "fail")
    assert Rule.of(section, "filtered", 0.9).quality_threshold == 0.4, "what is configured counts"
    auto = section.model_copy(update={"quality_threshold": "auto"})
    assert Rule.of(auto, "filtered", 0.9) == Rule(2, 5, 0.9, 0.1, "fail")


def test_a_missing_score_never_passes_a_filter() -> None:
    assert rules.refusal(Candidate(0, 1, selector=None, policy=0.9), rule()) == rules.SELECTOR_LOW
    assert rules.refusal(Candidate(0, 1, selector=0.9, policy=None), rule(minimum=0.0)) == rules.POLICY_LOW


def test_attempts_must_come_in_order() -> None:
    with pytest.raises(AssertionError):
        Trial(rule()).add(Candidate(1, 1))


def test_a_batch_takes_certain_attempts_first_then_early_ones() -> None:
    trials = [Trial(rule(num_candidates=2, max_attempts=10)) for _ in range(2)]
    assert next_batch(trials, 3) == [(0, 0), (0, 1), (1, 0)]
    assert next_batch(trials, 6) == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2)], "the last two are early"


def test_no_more_trials_are_read_than_fill_the_batch() -> None:
    trials = iter([settle(rule(), BAD), settle(rule(), GOOD), *(Trial(rule()) for _ in range(9))])
    assert next_batch(trials, 3) == [(0, 1), (2, 0), (3, 0)], "the retry first"
    assert len(list(trials)) == 7


def test_a_batch_never_goes_beyond_max_attempts() -> None:
    trials = [settle(rule(max_attempts=3), BAD), settle(rule(max_attempts=3), GOOD)]
    assert next_batch(trials, 8) == [(0, 1), (0, 2)]


def test_there_is_no_batch_when_all_are_settled() -> None:
    assert next_batch([settle(rule(), GOOD), settle(rule(max_attempts=1), BAD)], 8) == []


@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_the_batch_size_changes_no_outcome(size: int) -> None:
    """The same scores per attempt, packed differently, come to the same winners."""

    def scores(position: int, attempt: int) -> tuple[float, float]:
        return ((position * 37 + attempt * 17) % 100 / 100, (position * 53 + attempt * 29) % 97 / 97)

    trials = [Trial(rule(num_candidates=3, max_attempts=7)) for _ in range(11)]
    made = 0
    while batch := next_batch(trials, size):
        assert len(batch) <= size and len(set(batch)) == len(batch)
        for position, attempt in batch:
            trials[position].add(Candidate(attempt, 0, True, *scores(position, attempt)))
            made += 1
    for position, trial in enumerate(trials):
        alone = Trial(trial.rule)
        while not alone.settled:
            attempt = len(alone.candidates)
            alone.add(Candidate(attempt, 0, True, *scores(position, attempt)))
        assert (alone.winner, alone.considered, alone.reason) == (trial.winner, trial.considered, trial.reason)
    if size == 1:
        assert made == sum(trial.considered for trial in trials), "one at a time, nothing is surplus"


def test_a_batch_is_of_one_kind() -> None:
    trials = [Trial(rule(max_attempts=2), kind) for kind in ("25 steps", "50 steps", "25 steps", "50 steps")]
    assert next_batch(trials, 3) == [(0, 0), (2, 0), (0, 1)], "a place left goes to an early attempt of the kind"
    for position in (0, 2):
        trials[position].add(Candidate(0, 1, True, 0.9, 0.9))
    assert next_batch(trials, 2) == [(1, 0), (3, 0)]
