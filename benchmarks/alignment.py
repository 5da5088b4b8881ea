"""Does alignment make a generator better, and better than what is simpler?

    python benchmarks/alignment.py [--seeds 2] [--work DIRECTORY] [--arms ...] [--set KEY=VALUE ...] [--quick]

A generator that is wrong on purpose: fine-tuned on phantoms of which 40 % have captions that lie about finding or side
and 40 % are poor, all called excellent. Three simulated raters, who err, give 500 ratings of its own samples. From
these the campaign's own stages train the scorers and align the generator, in the default configuration of
configs/tiny.yaml but for the sizes that the table names. A judge that was trained on other phantoms with another seed,
and that neither raters nor campaign know, counts on the same prompts and noise in every arm:

- right: finding and side are those that were asked for; good: right, and not poor;
- KID to good phantoms, recall of them, diversity (mean distance of two images), in the judge's own features;
- accepted: by the scorers themselves, at the reward that a quarter of the images reach before. What an accepted image
  costs is 1 : that share.

Intervals are 95 %: a bootstrap that draws campaign seeds and then images. Everything is kept in `--work`, and a run
that was stopped goes on there. Prints the issue's aims with what was reached.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from aligning import arms as making
from aligning.aims import AIMS, ALIGNED, BEFORE, BEST_OF, PERFECT, PLAIN, TWICE
from aligning.campaign import CPU, KINDS, Sizes, World
from aligning.figures import FIGURES, Seen, estimate, of_arm
from aligning.observer import Observer, Sight, phantoms, through_autoencoder
from rich.console import Console
from rich.table import Table

from medsyn import config as configuration
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic

RATERS_EYE, JUDGE, GOOD, GOOD_TOO = 777_001, 777_002, 777_003, 777_004  # seeds of phantoms, all different
MAIN = (BEFORE, BEST_OF, PLAIN, ALIGNED, TWICE)
QUICK = Sizes(images_per_kind=60, ratings=160, judged=40)
QUICK_CHANGES = ("finetune.max_train_steps=20", "align.max_train_steps=6")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    console, sizes = Console(width=150), QUICK if args.quick else Sizes()
    changes = [*(QUICK_CHANGES if args.quick else ()), *args.set]
    with tempfile.TemporaryDirectory() if args.work is None else nullcontext(args.work) as work:
        system = load_synthetic(configuration.EMBEDDED, CPU, with_unet=False)
        judge = Observer(KINDS, JUDGE, system, Path(work) / "judge.safetensors")
        eye = Observer(KINDS, RATERS_EYE, system, Path(work) / "raters.safetensors")
        reference, good = (_good_phantoms(judge, sizes.judged, own, system) for own in (GOOD, GOOD_TOO))
        scale = float(reference.features.std())
        found: list[dict[str, Seen]] = []
        for number in range(args.first_seed, args.first_seed + args.seeds):
            this = World(Path(work) / f"world-{number}", number, sizes, changes)
            started = time.perf_counter()
            this.prepare(eye)
            console.print(f"seed {number}: generator, ratings and scorers in {time.perf_counter() - started:.0f} s")
            seen = {PERFECT: _seen(good, reference, scale, np.full(len(good.right), np.nan))}
            threshold = _threshold(making.before(this).candidates.reward)
            for arm in args.arms:
                started = time.perf_counter()
                made = making.ARMS[arm](this)
                sight = judge.look(made.candidates.best, made.candidates.asked)
                accepted = made.candidates.reward.max(axis=0) >= threshold
                seen[arm] = _seen(sight, reference, scale, accepted.astype(float))
                console.print(
                    f"seed {number}: {arm}: {_line(seen[arm])}; {made.note} {time.perf_counter() - started:.0f} s"
                )
            found.append(seen)
        _show(console, found, sizes)


def _good_phantoms(judge: Observer, count: int, own_seed: int, system: SyntheticSystem) -> Sight:
    """What the judge sees in `count` excellent phantoms, as the generator's autoencoder shows them."""
    facts, pixels = phantoms(KINDS, count // len(KINDS), own_seed, (3,))
    return judge.look(through_autoencoder(system, pixels), facts)


def _threshold(rewards: np.ndarray) -> float:
    """The reward that a quarter of the images reach before alignment."""
    return float(np.quantile(rewards, 0.75))


def _seen(sight: Sight, reference: Sight, scale: float, accepted: np.ndarray) -> Seen:
    return Seen(sight.is_right, sight.is_good, sight.features / scale, reference.features / scale, accepted)


def _line(seen: Seen) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in seen.figures().items())


def _show(console: Console, found: Sequence[Mapping[str, Seen]], sizes: Sizes) -> None:
    """Every arm, then the aims."""
    every, n = list(found[0]), f"{len(found)} campaign seeds, {sizes.judged} judged images of each and arm"
    table = Table(title=f"arms: {n}", title_justify="left")
    for column in ("arm", *FIGURES):
        table.add_column(column)
    cells = {f"{arm} {figure}": of_arm(arm, figure) for arm in every for figure in FIGURES}
    values = estimate(found, cells)
    for arm in every:
        table.add_row(arm, *(str(values[f"{arm} {figure}"]) for figure in FIGURES))
    console.print(table)
    asked = {name: aim for name, aim in AIMS.items() if set(aim.arms) <= set(every)}
    answers = estimate(found, {name: aim.combine for name, aim in asked.items()})
    aims = Table(title=f"aims: {n}", title_justify="left")
    for column in ("figure", "aim", "value (95 %)", "reached"):
        aims.add_column(column)
    for name, aim in asked.items():
        aims.add_row(name, aim.text, str(answers[name]), "yes" if aim.is_reached(answers[name]) else "no")
    console.print(aims)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    described.add_argument("--seeds", type=int, default=5, help="campaign seeds")
    described.add_argument("--first-seed", type=int, default=1)
    described.add_argument("--work", type=Path, help="folder that everything is kept in, and where a run goes on")
    described.add_argument("--arms", nargs="+", choices=making.ARMS, default=list(MAIN), metavar="ARM")
    described.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="on top of configs/tiny.yaml")
    described.add_argument("--quick", action="store_true", help="small enough to see that it runs; says nothing")
    described.add_argument("--threads", type=int, default=1, help="torch threads")
    return described


if __name__ == "__main__":
    main()
