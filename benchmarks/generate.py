"""How fast images are made, side by side in one run: medsyn, the specification's loop, a plain diffusers script.

(a) the specification's loop: one prompt per call of a diffusers pipeline, 50 steps of PNDM, one image after the other;
(b) diffusers' pipeline with a batch of prompts, as many steps as medsyn, the same solver and guidance;
(c) medsyn: the sampler that `generate` uses;
(f) medsyn with `generation.fast`, which makes other images (benchmarks/fast_modes.py judges them).

Every image has a prompt of its own, and no way knows any of them when it begins. Each way paints only; paints and
writes PNG files; and paints, scores, tries again and writes what passes, with random scorers and the threshold that
half of medsyn's candidates clear. medsyn's files come with all their records, and every block is on disk (fsync)
before it counts.

    python benchmarks/generate.py --shape tiny            the embedded model
    python benchmarks/generate.py --shape sd15            SD v1.5's shape with random weights (a GPU, or patience)

Prints images per second, the ratios of (c) and (f) to (a) and (b), and of (c) the share of its time inside UNet and
VAE, UNet rows per image, and the rate of operations against that of a large matrix product on the same device.

`--clock cpu` counts the CPU seconds of this process instead of seconds, for a CPU that others use as well; what medsyn
writes beside the painting is then counted as if it were done after it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from painting.models import Judge, sd15
from painting.ways import MAX_ATTEMPTS, SPECIFICATION_STEPS, WORKS, Diffusers, Medsyn, Way, Work, prompt
from rich.console import Console
from rich.table import Table
from torch import nn

from medsyn.config import DeviceSection, Precision, ScorerSection
from medsyn.generation.block_store import Item
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.models import weights
from medsyn.models.device import choose_device
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.schedulers import FAST

NAMES = {
    "a": "(a) specification's loop",
    "b": "(b) diffusers, a batch a call",
    "c": "(c) medsyn",
    "f": "(f) medsyn, fast",
}
SCORERS = {
    "tiny": ScorerSection(image_size=64, patch_size=8, hidden_dim=64, num_layers=3, num_heads=4, mlp_dim=128),
    "sd15": ScorerSection(),
}
TITLES = {"painting": "painting", "files": "and PNG files", "filter": "and the filter, accepted"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "sd15"), default="tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=32, help="images of (b) and (c); (a) makes a quarter of them")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="of all ways")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what a second is")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args()


@dataclass
class Inside:
    """Seconds and calls inside modules; a GPU is waited for at both ends, which costs a little."""

    device: torch.device
    clock: Callable[[], float]
    seconds: float = 0.0
    _started: list[float] = field(default_factory=list)

    def enter(self, *_: Any) -> None:
        """Before a forward pass."""
        synchronise(self.device)
        self._started.append(self.clock())

    def leave(self, *_: Any) -> None:
        """After a forward pass."""
        synchronise(self.device)
        self.seconds += self.clock() - self._started.pop()

    @contextmanager
    def watching(self, *modules: nn.Module) -> Iterator[Inside]:
        """Count what the modules take."""
        hooks = [
            hook
            for m in modules
            for hook in (m.register_forward_pre_hook(self.enter), m.register_forward_hook(self.leave))
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, body: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, Any]:
    """Seconds of `clock` that `body` takes, and its value."""
    synchronise(device)
    started = clock()
    value = body()
    synchronise(device)
    return clock() - started, value


@dataclass
class Rate:
    """Images per second of one way with one work: the best of the rounds.

    With the filter a round's luck is not speed: candidates per second of the best round, times the share of all
    rounds' candidates that became images.
    """

    candidates: int = 0
    images: int = 0
    fastest: float = 0.0  # candidates per second

    @property
    def value(self) -> float:
        """Images per second."""
        return self.fastest * self.images / self.candidates


def rates(ways: dict[str, Way], args: argparse.Namespace, system: SyntheticSystem) -> dict[tuple[str, Work], Rate]:
    """Every way with every work, in turns: what else the machine does hits all alike."""
    found = {(name, work): Rate() for work in WORKS for name in ways}
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for (name, work), rate in found.items():
                images = max(args.images // 4, 1) if name == "a" else args.images
                target = Path(folder) / f"{number}-{name}-{work}"
                system.forget_prompts()
                seconds, made = timed(system.device, lambda: ways[name](images, work, target), clock)  # noqa: B023
                rate.candidates += made.candidates
                rate.images += made.images
                rate.fastest = max(rate.fastest, made.candidates / seconds)
    return found


def tflop(body: Callable[[], Any]) -> float:
    """Floating point operations of `body`, in 10^12."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body()
    return float(counter.get_total_flops()) / 1e12


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int, clock: Callable[[], float]) -> float:
    """TFLOP/s of a square matrix product, the best of several."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(device, lambda: one @ other, clock)[0] for _ in range(20)) / 1e12


def roofline(
    system: SyntheticSystem, sampler: ImageSampler, sampled: float, clock: Callable[[], float]
) -> dict[str, float]:
    """What is computed for an image, and the rate of that against a matrix product's.

    Args:
        system: its networks.
        sampler: how they are used.
        sampled: images per second.
        clock: of these seconds.
    """
    latents = torch.zeros(1, *system.latent_shape(sampler.recipe.height), device=system.device)
    hidden = system.embed(prompt(0))[0][None].to(system.dtype)
    row = tflop(lambda: system.unet(latents.to(system.dtype), torch.tensor(1), encoder_hidden_states=hidden))
    decoder = tflop(lambda: system.decode(latents))
    items = [(Item(f"w-{number}", prompt(number), 0), 1) for number in range(sampler.recipe.batch_size)]
    rows = sampler.sample(items).unet_evaluations / len(items)
    achieved = sampled * (rows * row + decoder)
    peak = matrix_rate(system.device, system.dtype, 8192 if system.device.type == "cuda" else 1024, clock)
    return {
        "UNet rows per image": rows,
        "GFLOP per UNet row": 1000 * row,
        "GFLOP of decoding": 1000 * decoder,
        "achieved TFLOP/s": achieved,
        "matrix product TFLOP/s": peak,
        "achieved share": achieved / peak,
    }


@torch.no_grad()
def allowed(
    system: SyntheticSystem, sampler: ImageSampler, judge: Judge, clock: Callable[[], float]
) -> dict[str, float]:
    """What (c) could be of (a) if both did nothing but their UNet calls, decoding and scoring.

    (a) has 51 guided calls of 2 rows, (c) as many as it has steps, of 2 rows for each image of the batch.
    """
    recipe, device = sampler.recipe, system.device
    shape, width = system.latent_shape(recipe.height), system.text_encoder.config.hidden_size

    def milliseconds(body: Callable[[], Any]) -> float:
        return 1000 * min(timed(device, body, clock)[0] for _ in range(4))

    def row(count: int) -> float:
        rows = torch.randn(count, *shape, device=device, dtype=system.dtype)
        hidden = torch.randn(count, 77, width, device=device, dtype=system.dtype)
        return milliseconds(lambda: system.unet(rows, torch.tensor(5), encoder_hidden_states=hidden)) / count

    def decoding(count: int) -> float:
        latents = torch.randn(count, *shape, device=device)
        return milliseconds(lambda: system.decode(latents)) / count

    pixels, pooled = torch.rand(1, 3, recipe.height, recipe.width, device=device), torch.randn(1, width, device=device)
    scoring = milliseconds(lambda: (judge.selector.score(pixels), judge.policy.score(pixels, pooled)))
    few, many, size = row(2), row(2 * recipe.batch_size), recipe.batch_size
    one = 2 * (SPECIFICATION_STEPS + 1) * few + decoding(1)
    ours = 2 * recipe.num_inference_steps * many + decoding(size)
    return {
        "ms of a UNet row, 2 in a call": few,
        f"ms of a UNet row, {2 * size} in a call": many,
        "ms of scoring an image alone": scoring,
        "(c) : (a) by these and decoding alone": one / ours,
        "with scoring": (one + scoring) / (ours + scoring),
    }


def half(sampler: ImageSampler, judge: Judge) -> Judge:
    """The judge with the threshold that half of a few batches clear; also warms the sampler up."""
    judged = replace(sampler, selector=judge.selector, policy=judge.policy)
    size = sampler.recipe.batch_size
    items = [(Item(f"t-{number}", prompt(number), 0), 0) for number in range(4 * size)]
    batches = [judged.sample(items[start : start + size]) for start in range(0, len(items), size)]
    return replace(judge, threshold=median(c.selector or 0.0 for batch in batches for c in batch.candidates))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one run."""
    chosen = choose_device(DeviceSection(cpu_threads=args.threads, precision=args.precision))
    system = load_synthetic(str(weights.embedded_directory()), chosen.device, chosen.dtype)
    if args.shape == "sd15":
        sd15(system)
    pixels, size, device = args.resolution, args.batch_size, system.device
    sampler = ImageSampler(Recipe("X-Ray", 0, pixels, pixels, "dpm", args.steps, 7.5, size), system)
    judge = half(sampler, Judge.random(system, SCORERS[args.shape]))
    ways: dict[str, Way] = {
        "a": Diffusers(system, judge, "pndm", SPECIFICATION_STEPS, 1, pixels),
        "b": Diffusers(system, judge, "dpm", args.steps, size, pixels),
        "c": Medsyn(sampler, judge),
        "f": Medsyn(replace(sampler, recipe=replace(sampler.recipe, shortcuts=FAST)), judge),
    }
    found = rates(ways, args, system)
    clock = time.thread_time if args.clock == "cpu" else time.perf_counter  # of the painting thread
    inside = Inside(device, clock)
    with tempfile.TemporaryDirectory() as folder, inside.watching(system.unet, system.decoder):
        watched, _ = timed(device, lambda: ways["c"](args.images, "files", Path(folder) / "watched"), clock)
    return {
        "device": sampler.device_name,
        "dtype": str(system.dtype),
        "clock": args.clock,
        "images/s": {name: {work: found[name, work].value for work in WORKS} for name in ways},
        "candidates per accepted image": {
            name: found[name, "filter"].candidates / max(found[name, "filter"].images, 1) for name in ways
        },
        "share of time in UNet and VAE": inside.seconds / watched,
        **roofline(system, sampler, found["c", "painting"].value, clock),
        **allowed(system, sampler, judge, clock),
    }


def show(console: Console, numbers: dict[str, Any], title: str) -> None:
    """Two tables: rates and ratios, and the rest."""
    per_second = numbers["images/s"]
    second = "CPU s" if numbers["clock"] == "cpu" else "s"
    table = Table(f"images/{second}", *(TITLES[work] for work in WORKS), "candidates per accepted image", title=title)
    for name, its in per_second.items():
        tried = numbers["candidates per accepted image"][name]
        table.add_row(NAMES[name], *(f"{its[work]:.4g}" for work in WORKS), f"{tried:.2f}")
    for mine, other in product("cf", "ab"):
        ratios = [f"{per_second[mine][work] / max(per_second[other][work], 1e-12):.3f}" for work in WORKS]
        table.add_row(f"({mine}) : ({other})", *ratios, "")
    console.print(table)
    rest = Table(show_header=False)
    for key, value in numbers.items():
        if not isinstance(value, dict):
            rest.add_row(key, value if isinstance(value, str) else f"{value:.4g}")
    console.print(rest)


def main() -> None:
    """Measure and print."""
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else 120)
    numbers = measure(args)
    filtered = f"at most {MAX_ATTEMPTS} attempts"
    show(
        console, numbers, f"{args.shape}, {args.resolution} px, batch {args.batch_size}, {args.steps} steps, {filtered}"
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} CPUs; load of the last 1, 5 and 15 minutes {load}", highlight=False)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
