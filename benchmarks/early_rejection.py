"""Does it pay to stop candidates part-way whose predicted clean image already scores badly?

    python benchmarks/early_rejection.py --campaign runs/tiny    # a campaign whose scorers are trained
    python benchmarks/early_rejection.py                         # trains configs/tiny.yaml first

Candidates of every modality are sampled as `generate` samples them. Part-way (`--fractions` of the steps) the clean
image that the UNet predicts at that step is decoded and shown to the Selector; at the end the image is scored as ever.
With half of the candidates, a cut on the early score is chosen for each modality that loses at most `--losses` of those
that are accepted in the end. With the other half, the cost of an accepted image is counted with and without the cut:
steps of the UNet, and decoding and scoring, the early ones included, in seconds as measured in this run and in the
operations of SD v1.5.

A batch has a fixed size, so stopping some of it saves nothing by itself. Two ways are counted:

    batch     a batch ends when all of it is below the cut, and goes on whole otherwise
    repacked  what is above the cut waits, with its solver's memory, until it fills a batch: nothing is wasted

Where (nearly) every candidate is accepted there is nothing to reject; so besides the campaign's own threshold others
are tried at which a given share is accepted.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import end_to_end
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from medsyn import disk
from medsyn.campaign.estimate import architecture
from medsyn.campaign.state import campaign_file
from medsyn.config import Config
from medsyn.generation.block_store import Item, read_blocks
from medsyn.generation.sample.batch import ImageSampler
from medsyn.generation.sample.load import Loader
from medsyn.generation.write.provenance import Sources, quality_threshold
from medsyn.models.pictures import quantise_all
from medsyn.models.sampler import build_scheduler, initial_noise, sample

RATIOS = {  # of a row, by what they are called
    "UNet": "unet",
    "batch": "batch",
    "repacked": "repacked",
    "repacked, SD v1.5": "repacked_sd15",
    "perfect look": "perfect",
}
WORTH_IT = 0.15  # of the cost of an accepted image: what a saving has to be to be built


@dataclass(frozen=True)
class Scores:
    """Of the candidates of one modality, in the order of their batches."""

    early: np.ndarray  # Selector on the predicted clean image [fractions, candidates]
    final: np.ndarray  # Selector [candidates]
    policy: np.ndarray

    def halves(self, batch: int) -> tuple[Scores, Scores]:
        """Every other batch: those that the cut is chosen with, and those that it is tried on."""
        first = np.arange(len(self.final)) // batch % 2 == 0
        return tuple(Scores(self.early[:, half], self.final[half], self.policy[half]) for half in (first, ~first))  # type: ignore[return-value]


@dataclass(frozen=True)
class Costs:
    """Of one candidate, in any unit."""

    step: float  # of the solver: the UNet's evaluation, both halves of the guidance
    decode: float
    select: float
    align: float  # the Policy's score


@dataclass(frozen=True)
class Row:
    """One threshold, one step to look at, one loss that is allowed: measured on the second half."""

    accepts: float  # share of the candidates that clear the threshold
    steps: int  # after which the predicted image is looked at
    allowed: float
    rejected: float  # share of the candidates that were stopped
    lost: float  # share of those that would have been accepted
    batch: float  # cost of an accepted image, relative to that without looking
    repacked: float
    repacked_sd15: float  # the same with SD v1.5's operations for seconds
    perfect: float  # repacked, if the early look told exactly who will be accepted
    unet: float  # UNet evaluations for an accepted image, relative; repacked
    selector: tuple[float, float]  # means of accepted images without and with looking
    policy: tuple[float, float]


def predicted_clean(scheduler: Any, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """The clean latents that a prediction stands for, of a solver whose latents keep unit variance."""
    kept = scheduler.alphas_cumprod[int(timestep)].to(latents.device)
    if scheduler.config.prediction_type == "v_prediction":
        return kept.sqrt() * latents - (1 - kept).sqrt() * prediction
    return (latents - (1 - kept).sqrt() * prediction) / kept.sqrt()


def watch(scheduler: Any, looks: Sequence[int]) -> dict[int, Tensor]:
    """Where the clean latents appear that a scheduler's steps number `looks` (from 1) predict."""
    if float(scheduler.init_noise_sigma) != 1:
        raise SystemExit(f"{type(scheduler).__name__} scales its latents; take generation.scheduler=dpm, ddim or unipc")
    seen: dict[int, Tensor] = {}
    step, numbers = scheduler.step, iter(range(1, 1 + len(scheduler.timesteps)))

    @functools.wraps(step)
    def watched(prediction: Tensor, timestep: Tensor, latents: Tensor, **options: Any) -> Any:
        if (number := next(numbers)) in looks:
            seen[number] = predicted_clean(scheduler, prediction, timestep, latents)
        return step(prediction, timestep, latents, **options)

    scheduler.step = watched
    return seen


@dataclass
class Clock:
    """Seconds by name: of a GPU that is waited for, or CPU seconds, which what else runs there does not change."""

    device: torch.device
    seconds: dict[str, float]

    def __call__(self, name: str, body: Callable[[], Any]) -> Any:
        """The value of `body`, its seconds added to `name`."""
        is_gpu = self.device.type == "cuda"
        now = time.perf_counter if is_gpu else time.process_time
        started = now()
        value = body()
        if is_gpu:
            torch.cuda.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + now() - started
        return value


def observe(sampler: ImageSampler, wanted: Sequence[tuple[Item, int]], looks: Sequence[int], clock: Clock) -> Scores:
    """One batch as `ImageSampler.sample` makes it, and what the Selector says after the steps `looks`."""
    recipe, system, selector = sampler.recipe, sampler.system, sampler.selector
    assert selector is not None, "the filtered mode has scorers"
    seeds = [recipe.image_seed(item, attempt) for item, attempt in wanted]
    features = [system.embed(item.prompt) for item, _ in wanted]
    guidance = sampler.guidance([item for item, _ in wanted])
    scheduler = build_scheduler(recipe.scheduler, system.scheduler_config, recipe.num_inference_steps)
    seen = watch(scheduler, looks)
    hidden = torch.stack([one for one, _ in features])
    noise = initial_noise(seeds, system.latent_shape(recipe.height, recipe.width))
    latents, _ = clock("steps", lambda: sample(system.unet, scheduler, hidden, guidance, noise, seeds))

    def decode(its: Tensor) -> Tensor:
        return quantise_all(system.decode(its), recipe.modality)

    pictures = clock("decode", lambda: decode(latents))
    pooled = torch.stack([one for _, one in features])
    scores = clock("score", lambda: sampler.scores(pictures, pooled))
    early = [[one["selector"] for one in sampler.scores(decode(seen[look]), pooled)] for look in looks]
    final, policy = (np.array([one[scorer] for one in scores]) for scorer in ("selector", "policy"))
    return Scores(np.array(early), final, policy)


def candidates(config: Config, modality: str, batches: int) -> Iterator[list[tuple[Item, int]]]:
    """Batches over all prompts of the modality, attempt after attempt."""
    blocks = read_blocks(config, modality)
    items = [item for number in range(blocks.count) for item in blocks.items(number)]
    size = config.generation.images_per_batch
    places = range(batches * size)
    wanted = [(items[place % len(items)], place // len(items)) for place in places]
    yield from (wanted[start : start + size] for start in range(0, len(wanted), size))


def sample_all(root: Path, count: int, looks: Sequence[int], console: Console) -> tuple[dict[str, Scores], Costs]:
    """The scores of `count` candidates of every modality, and what one costs in seconds."""
    campaign = campaign_file.open_campaign(root)
    config = campaign.config
    size = config.generation.images_per_batch
    batches = 2 * max(1, count // (2 * size))
    seconds: dict[str, float] = {}
    scores: dict[str, Scores] = {}
    for modality in config.data.modalities:
        sampler = Loader(config, modality, campaign.directory).sampler("filtered")
        clock = Clock(sampler.system.device, seconds)
        wanted = list(candidates(config, modality, batches))
        observe(sampler, wanted[0], looks, Clock(sampler.system.device, {}))  # kernels are chosen at the first call
        parts = [
            observe(sampler, one, looks, clock) for one in track(wanted, modality, console=console, transient=True)
        ]
        scores[modality] = Scores(
            np.concatenate([part.early for part in parts], axis=1),
            np.concatenate([part.final for part in parts]),
            np.concatenate([part.policy for part in parts]),
        )
    made = batches * size * len(scores)
    score = seconds["score"] / made / 2  # both scorers are of one size
    steps = config.generation.num_inference_steps
    return scores, Costs(seconds["steps"] / made / steps, seconds["decode"] / made, score, score)


def sd15_costs(config: Config) -> Costs:
    """In the operations of SD v1.5 at 256 pixels, with the scorers of the configuration."""
    networks = architecture.describe(architecture.SD15_UNET, architecture.SD15_VAE, architecture.SD15_TEXT, 256)
    scorers = [architecture.scorer(section).flops for section in (config.selector, config.policy_model)]
    return Costs(2 * networks.unet.flops, networks.decoder.flops, scorers[0], scorers[1])


def relative(costs: Costs, steps: int, look: int, going_on: float, accepted: float, plainly: float) -> float:
    """Cost of an accepted image with looking to that without; shares of all candidates."""
    end = costs.decode + costs.select + costs.align
    without = (steps * costs.step + end) / plainly
    looking = look * costs.step + costs.decode + costs.select
    return (looking + going_on * ((steps - look) * costs.step + end)) / accepted / without


def cut(early: np.ndarray, accepted: np.ndarray, allowed: float) -> float:
    """The highest early score below which at most `allowed` of the accepted candidates are."""
    ordered = np.sort(early[accepted])
    return float(ordered[int(allowed * len(ordered))]) if len(ordered) else -np.inf


def judge(
    halves: Sequence[tuple[Scores, Scores]],
    thresholds: Sequence[float],
    look: tuple[int, int],
    allowed: float,
    costs: tuple[Costs, Costs],
    steps: int,
    batch: int,
) -> Row:
    """One row: cuts from the first halves, everything else from the second ones.

    Args:
        halves: of each modality.
        thresholds: of the Selector's final score, for each modality.
        look: which of the early scores, and after how many steps it was.
        allowed: share of the accepted candidates that the cut may lose.
        costs: as measured, and SD v1.5's.
        steps: of the solver.
        batch: its size.
    """
    which, after = look
    kept, accepted, selector, policy = [], [], [], []
    for (first, second), threshold in zip(halves, thresholds, strict=True):
        lowest = cut(first.early[which], first.final >= threshold, allowed)
        kept.append(second.early[which] >= lowest)
        accepted.append(second.final >= threshold)
        selector.append(second.final)
        policy.append(second.policy)
    goes_on, good = np.concatenate(kept), np.concatenate(accepted)
    all_selector, all_policy = np.concatenate(selector), np.concatenate(policy)
    runs_on = np.repeat(goes_on.reshape(-1, batch).any(axis=1), batch)  # what is cut is finished with the others
    found = (good & goes_on).mean()
    plainly = good.mean()

    def ratio(its: Costs, going_on: np.ndarray) -> float:
        return relative(its, steps, after, going_on.mean(), (good & going_on).mean(), plainly)

    return Row(
        accepts=plainly,
        steps=after,
        allowed=allowed,
        rejected=1 - goes_on.mean(),
        lost=1 - found / plainly,
        batch=ratio(costs[0], runs_on),
        repacked=ratio(costs[0], goes_on),
        repacked_sd15=ratio(costs[1], goes_on),
        perfect=ratio(costs[0], good),
        unet=(after + goes_on.mean() * (steps - after)) / found / (steps / plainly),
        selector=(all_selector[good].mean(), all_selector[good & goes_on].mean()),
        policy=(all_policy[good].mean(), all_policy[good & goes_on].mean()),
    )


def show(console: Console, rows: Sequence[Row], total: int) -> None:
    """The table; ratios below 1 are savings."""
    names = ["accepted", f"look after, of {total}", "may lose", "stopped", "lost", *RATIOS, "Selector", "Policy"]
    table = Table(*names, title="cost of an accepted image, relative to that without looking")
    for row in rows:
        shares = [f"{value:.0%}" for value in (row.allowed, row.rejected)]
        ratios = [f"{getattr(row, name):.3f}" for name in RATIOS.values()]
        means = ["{:.3f} -> {:.3f}".format(*pair) for pair in (row.selector, row.policy)]
        table.add_row(f"{row.accepts:.0%}", str(row.steps), *shares, f"{row.lost:.1%}", *ratios, *means)
    console.print(table)


def verdict(rows: Sequence[Row]) -> str:
    """The largest saving of each kind, and what it means."""
    lines = []
    for told, name in RATIOS.items():
        best = min(rows, key=lambda row: getattr(row, name))
        where = f"after {best.steps} steps with {best.accepts:.0%} accepted"
        lines.append(f"{told}: saves at most {1 - getattr(best, name):.1%} ({where})")
    worth = any(min(row.batch, row.repacked) < 1 - WORTH_IT for row in rows)
    return "\n".join([*lines, f"batch or repacked saves more than {WORTH_IT:.0%}: {'yes' if worth else 'no'}"])


def measure(root: Path, args: argparse.Namespace, console: Console) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and the facts of the run."""
    campaign = campaign_file.open_campaign(root)
    config = campaign.config
    steps, size = config.generation.num_inference_steps, config.generation.images_per_batch
    looks = sorted({max(1, round(fraction * steps)) for fraction in args.fractions})
    scores, costs = sample_all(root, args.candidates, looks, console)
    halves = [one.halves(size) for one in scores.values()]
    shares = [np.quantile(first.final, 1 - share) for share in args.accepted for first, _ in halves]
    selectors = {name: Sources(config, name, campaign.directory).scorers()[0].parent for name in scores}
    thresholds = [[quality_threshold(config, selector, name) for name, selector in selectors.items()]]
    thresholds += [shares[start : start + len(halves)] for start in range(0, len(shares), len(halves))]
    both = costs, sd15_costs(config)
    rows = [
        judge(halves, levels, (number, look), allowed, both, steps, size)
        for levels in thresholds
        for number, look in enumerate(looks)
        for allowed in args.losses
    ]
    agree = {
        look: float(np.mean([np.corrcoef(its.early[number], its.final)[0, 1] for its in scores.values()]))
        for number, look in enumerate(looks)
    }
    return rows, {
        "candidates": sum(len(its.final) for its in scores.values()),
        "milliseconds": {name: 1000 * value for name, value in asdict(costs).items()},
        "steps": steps,
        "batch_size": size,
        "correlation": agree,
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", type=Path, help="directory of a campaign whose scorers are trained")
    parser.add_argument("--config", type=Path, default=end_to_end.ROOT / "configs" / "tiny.yaml", help="run otherwise")
    parser.add_argument("--candidates", type=int, default=384, metavar="N", help="of each modality")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8], metavar="F")
    parser.add_argument("--losses", type=float, nargs="+", default=[0.01, 0.05], metavar="F")
    parser.add_argument("--accepted", type=float, nargs="+", default=[0.75, 0.5, 0.25], metavar="F")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() if args.campaign is None else nullcontext(args.campaign) as folder:
        root = Path(folder)
        if args.campaign is None:
            root = root / "campaign"
            end_to_end.submit(args.config, root, [])
        rows, facts = measure(root, args, console)
    show(console, rows, facts["steps"])
    times = ", ".join(f"{name} {value:.2f}" for name, value in facts["milliseconds"].items())
    agree = ", ".join(f"{value:.2f} after {look}" for look, value in facts["correlation"].items())
    console.print(f"{facts['candidates']} candidates in batches of {facts['batch_size']}; milliseconds of one: {times}")
    console.print(f"correlation of early and final score, mean of the modalities: {agree}")
    console.print(verdict(rows), highlight=False)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} CPUs; load of the last 1, 5 and 15 minutes {load}", highlight=False)
    if args.json:
        disk.write_json(args.json, {**facts, "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
