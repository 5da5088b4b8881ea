"""How many places of batches are sampled per candidate that the filter needs.

Candidates pass at random; batches are packed over a whole shard as `generate` packs them (the same function), and for
comparison over each block alone; in turn, each batch planned when the one before it is judged, and ahead, as on a GPU,
each planned before that. Nothing is sampled, so it takes seconds.

    uv run python benchmarks/packing.py
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence

from medsyn.generation.filter import Candidate, Rule, Trial
from medsyn.generation.make.packing import plan_batch

PASS_RATES = (0.28, 0.54, 0.77, 1.0)
BATCHES_PER_BLOCK = 4


def places_per_candidate(
    groups: Sequence[Sequence[Trial]], size: int, pass_rate: float, chance: random.Random, ahead: bool = False
) -> float:
    """Make all trials, each group's batches on their own: places sampled per candidate considered."""
    places = 0
    for trials in groups:
        left = list(trials)  # the settled ones in front are not looked at again
        under_way: list[tuple[Trial, int]] = []
        while True:
            batch = [(left[position], attempt) for position, attempt in plan_batch(left, size, bool(under_way))]
            if not batch and not under_way:
                break
            places += size * bool(batch)
            for trial, _ in batch:
                trial.under_way += 1
            _judge(under_way, pass_rate, chance)
            under_way = batch
            if not ahead:
                _judge(under_way, pass_rate, chance)
                under_way = []
            while left and left[0].settled:
                del left[0]
    return places / sum(trial.considered for trials in groups for trial in trials)


def _judge(batch: Sequence[tuple[Trial, int]], pass_rate: float, chance: random.Random) -> None:
    for trial, attempt in batch:
        trial.under_way -= 1
        score = float(chance.random() < pass_rate)
        trial.add(Candidate(attempt, 0, selector=score, policy=score))


def shard(rule: Rule, size: int, pass_rate: float, batches: int) -> list[Trial]:
    """As many items as need about so many batches."""
    chance, needed = random.Random(0), []
    for _ in range(1000):
        trial = Trial(rule)
        places_per_candidate([[trial]], 1, pass_rate, chance)
        needed.append(trial.considered)
    return [Trial(rule) for _ in range(round(batches * size / statistics.mean(needed)))]


def measure(
    rule: Rule, size: int, pass_rate: float, batches: int, runs: int, by_block: bool = False, ahead: bool = False
) -> float:
    """The mean of `places_per_candidate` over `runs` shards, packed over the shard or over each block alone."""
    chance, found = random.Random(1), []
    for _ in range(runs):
        trials = shard(rule, size, pass_rate, batches)
        step = BATCHES_PER_BLOCK * size if by_block else max(len(trials), 1)
        groups = [trials[start : start + step] for start in range(0, len(trials), step)]
        found.append(places_per_candidate(groups, size, pass_rate, chance, ahead))
    return statistics.mean(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=64, help="of a shard")
    parser.add_argument("--runs", type=int, default=30, help="shards of each kind")
    args = parser.parse_args()
    rates = " | ".join(f"{rate:.0%}" for rate in PASS_RATES)
    print(f"| batch, candidates wanted, attempts, packed over | {rates} |")
    for size, wanted, attempts in ((8, 1, 6), (8, 3, 12), (64, 1, 6), (64, 3, 12)):
        rule = Rule(wanted, attempts, 0.5, None, "skip")
        for over, by_block, ahead in (("block", True, False), ("shard", False, False), ("shard, ahead", False, True)):
            made = [measure(rule, size, rate, args.batches, args.runs, by_block, ahead) for rate in PASS_RATES]
            print(f"| {size}, {wanted}, {attempts}, {over} | {' | '.join(f'{one:.3f}' for one in made)} |")


if __name__ == "__main__":
    main()
