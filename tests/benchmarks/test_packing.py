"""How well batches are packed, by chance alone: the sampler and its models are left out."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from medsyn.generation.filter import Rule, Trial

SHARD, SIZE = 64, 16  # batches, places in one


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("pass_rate", [0.28, 0.54, 0.77, 1.0])
def test_a_shard_of_64_batches_samples_at_most_a_fiftieth_more_than_it_needs(pass_rate: float, ahead: bool) -> None:
    import packing

    rule, chance, found = Rule(1, 6, 0.5, None, "skip"), random.Random(2), []
    expected = sum((1 - pass_rate) ** attempt for attempt in range(rule.max_attempts))
    for _ in range(8):
        trials = [Trial(rule) for _ in range(round(SHARD * SIZE / expected))]
        found.append(packing.places_per_candidate([trials], SIZE, pass_rate, chance, ahead))
    assert mean(found) <= 1.02
