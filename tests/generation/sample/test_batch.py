"""How well batches are packed, by chance alone: the sampler and its models are left out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean

import pytest

from medsyn.generation.filter import Candidate, Rule, Trial, next_batch
from medsyn.generation.sample.batch import Batch

SHARD, SIZE = 64, 16  # batches, places in one


def places(trials: Sequence[Trial], pass_rate: float, chance: random.Random) -> int:
    """Make all trials; the places of the batches that took."""
    made, left = 0, list(trials)
    while batch := next_batch(left, SIZE):
        made += SIZE
        for position, attempt in batch:
            score = float(chance.random() < pass_rate)
            left[position].add(Candidate(attempt, 0, selector=score, policy=score))
        while left and left[0].settled:
            del left[0]
    return made


@pytest.mark.parametrize("pass_rate", [0.28, 0.54, 0.77, 1.0])
def test_a_shard_of_64_batches_samples_at_most_a_fiftieth_more_than_it_needs(pass_rate: float) -> None:
    rule, chance, found = Rule(1, 6, 0.5, None, "skip"), random.Random(2), []
    expected = sum((1 - pass_rate) ** attempt for attempt in range(rule.max_attempts))
    for _ in range(8):
        trials = [Trial(rule) for _ in range(round(SHARD * SIZE / expected))]
        made = places(trials, pass_rate, chance)
        found.append(made / sum(trial.considered for trial in trials))
    assert mean(found) <= 1.02


def test_the_parts_of_a_batch_add_up_to_it() -> None:
    candidates = [Candidate(attempt, attempt) for attempt in range(7)]
    whole = Batch(candidates, [], 100, 7.0, "gpu")
    parts = Batch(candidates, list(range(7)), 100, 7.0, "gpu").split("aabacca")  # type: ignore[arg-type]
    assert [[candidate.attempt for candidate in part.candidates] for part in parts] == [[0, 1, 3, 6], [2], [4, 5]]
    assert [part.pictures for part in parts] == [[0, 1, 3, 6], [2], [4, 5]]
    assert sum(part.unet_evaluations for part in parts) == whole.unet_evaluations
    assert [part.seconds for part in parts] == pytest.approx([4.0, 1.0, 2.0])
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert {part.device for part in parts} == {"gpu"}
