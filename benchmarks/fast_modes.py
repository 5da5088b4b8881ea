"""What do the shortcuts of the sampler save, and what do they cost?

    python benchmarks/fast_modes.py [--images 216] [--model embedded] [--unet DIRECTORY]

Samples the same prompts with the same noise by every combination of `generation.deep_cache_every`,
`generation.text_attention_until` and `generation.guidance_interval` in COMBINATIONS, at equal steps, and in full with
fewer steps, which is what a shortcut has to beat. All are judged by two judges that know nothing of the generator:

* the classifier of benchmarks/prompt_following.py: is the finding, and is the side, the one that was asked for?
* a linear regression from measures of noise, sharpness and contrast (`medsyn.models.quality`) to the quality, 1 to 3,
  of phantoms that went through the model's autoencoder; every prompt asks for 3.

Differences are those to the full run, image by image, with their 95 % intervals.

Time is CPU time (on a GPU, seconds) inside the UNet. Operations are those of SD v1.5's shape at --pixels pixels,
counted by torch's counter for every kind of call.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from prompt_following import FIRST_INDEX, PROMPT_SEED, REAL_SEED, sample, through_autoencoder
from rich.console import Console
from rich.table import Table
from torch import Tensor

from medsyn import config as configuration
from medsyn import disk
from medsyn.data.phantoms.phantom import KINDS, PRETRAINING, Label, draw_phantom
from medsyn.evaluation import judge
from medsyn.models.device import choose_device
from medsyn.models.quality import quality_features
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.models.unet_calls import UNetCalls
from medsyn.schedulers import FAST, Call, Shortcuts

BEST_QUALITY = 3
RIDGE = 1.0


def combinations(steps: int) -> dict[str, tuple[Shortcuts, int]]:
    """What is compared, by its name: the shortcuts and the number of steps. The first one is the full run."""
    levers = {"full": Shortcuts()}
    levers |= {f"guidance in [{a}, {b}]": Shortcuts((a, b)) for a, b in ((0.0, 0.6), (0.2, 0.8))}
    levers |= {f"deep every {n}": Shortcuts(deep_cache_every=n) for n in (2, 3, 5)}
    levers |= {f"text until {m}": Shortcuts(text_attention_until=m) for m in (0.6, 0.4)}
    levers |= {
        f"deep every {n}, text until {m}": Shortcuts(deep_cache_every=n, text_attention_until=m)
        for n, m in ((2, 0.6), (2, 0.4), (3, 0.8), (3, 0.6))
    }
    fewer = {f"full, {n} steps": (Shortcuts(), n) for n in (round(steps / 2), round(steps / 2.5), round(steps / 3))}
    return {
        **{f"{name} (fast)" if its == FAST else name: (its, steps) for name, its in levers.items()},
        **fewer,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=configuration.EMBEDDED, help="`embedded`, a diffusers directory or a hub id")
    parser.add_argument("--unet", type=Path, help="directory holding a fine-tuned unet/")
    parser.add_argument("--images", type=int, default=216, help="of every combination; best a multiple of 36")
    parser.add_argument("--first", type=int, default=0, help="of the prompts: another number, other prompts and noise")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--pixels", type=int, default=256, help="for the operations of SD v1.5's shape")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--only", nargs="*", help="combinations that contain one of these words, beside the full run")
    parser.add_argument("--judge", type=Path, help="directory where the trained judge is kept")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args()


@contextmanager
def timed_calls(device: torch.device) -> Iterator[list[float]]:
    """Collect the seconds of every UNet call, whatever it computes."""
    seconds: list[float] = []
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    real = UNetCalls.__call__

    def timed(self: UNetCalls, index: int, rows: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        started = clock()
        made = real(self, index, rows, timestep, hidden)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
        return made

    UNetCalls.__call__ = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        UNetCalls.__call__ = real  # type: ignore[method-assign]


def operations(pixels: int) -> Callable[[Sequence[Call]], float]:
    """GFLOP that SD v1.5's UNet spends on one image in a run of such calls."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        unet.set_attn_processor(AttnProcessor())  # of plain matrix products, which the counter knows
        row, hidden = torch.zeros(1, 4, pixels // 8, pixels // 8), torch.zeros(1, 77, 768)
        timestep = torch.zeros(1)
    unet.requires_grad_(False).eval()
    run = [Call(False), Call(False, deep=False), Call(False, text_frozen=True), Call(False, False, True)]
    calls, of_a_row = UNetCalls(unet, run), {}
    for index, call in enumerate(run):
        with FlopCounterMode(display=False) as counter:
            calls(index, row, timestep, hidden)
        of_a_row[call.deep, call.text_frozen] = float(counter.get_total_flops()) / 1e9
    return lambda some: sum((1 + call.guided) * of_a_row[call.deep, call.text_frozen] for call in some)


class QualityJudge:
    """A ridge regression from `quality_features` to the quality that a phantom was drawn with."""

    def __init__(self, images: Sequence[np.ndarray], facts: Sequence[Label]) -> None:
        """Fit it to phantoms, each kind by itself: what is noise in a CT is texture in an OCT."""
        self._fits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        features, quality = _features(images), np.array([fact.quality for fact in facts], float)
        for kind in KINDS:
            mine = np.array([fact.kind == kind for fact in facts])
            mean, spread = features[mine].mean(0), features[mine].std(0) + 1e-6
            rows = np.c_[np.clip((features[mine] - mean) / spread, -3, 3), np.ones(mine.sum())]
            penalty = RIDGE * np.diag([*np.ones(features.shape[1]), 0.0])
            self._fits[kind] = mean, spread, np.linalg.solve(rows.T @ rows + penalty, rows.T @ quality[mine])

    def __call__(self, images: Sequence[np.ndarray], facts: Sequence[Label]) -> np.ndarray:
        """The quality of each image, about 1 to 3."""
        found = []
        for row, fact in zip(_features(images), facts, strict=True):
            mean, spread, weights = self._fits[fact.kind]
            found.append(np.append(np.clip((row - mean) / spread, -3, 3), 1.0) @ weights)
        return np.array(found)


def _features(images: Sequence[np.ndarray]) -> np.ndarray:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return quality_features(pixels).double().numpy()


@dataclass(frozen=True)
class Outcome:
    """What one combination came to; arrays have a value for every image."""

    seconds: float  # in the UNet, for an image
    gflop: float  # of SD v1.5's shape, for an image
    right: np.ndarray  # whether the finding is
    sides: np.ndarray  # whether the side is; nan where none was asked for
    quality: np.ndarray
    images: list[np.ndarray]


def mean(values: np.ndarray) -> tuple[float, float]:
    """The mean of what is not nan, and half the width of its 95 % interval."""
    there = values[~np.isnan(values)]
    return float(there.mean()), float(1.96 * there.std(ddof=1) / np.sqrt(len(there)))


def shown(values: np.ndarray, scale: float = 1.0, sign: str = "") -> str:
    """A mean with its interval."""
    value, half = mean(values.astype(float))
    digits = 1 if scale == 100 else 3
    return f"{scale * value:{sign}.{digits}f} ± {scale * half:.{digits}f}"


def main() -> None:
    """Measure and print."""
    args, console = arguments(), Console(width=180)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() if args.judge is None else nullcontext(args.judge) as directory:
        expert = judge.load_or_train(Path(directory), judge.JudgeRecipe(protocol=PRETRAINING))
    chosen = choose_device(configuration.DeviceSection(cpu_threads=args.threads))
    system = load_synthetic(args.model, chosen.device, chosen.dtype, unet_from=args.unet)
    real, facts = judge.draw(120, REAL_SEED, PRETRAINING)
    decoded = through_autoencoder(system, real)
    quality = QualityJudge(decoded[::2], facts[::2])
    held_out = quality(decoded[1::2], facts[1::2])
    truth = np.array([fact.quality for fact in facts[1::2]])
    console.print(
        f"the quality judge on {len(truth)} phantoms it has not seen: correlation "
        f"{np.corrcoef(held_out, truth)[0, 1]:.2f}, means "
        + ", ".join(f"{held_out[truth == one].mean():.2f} for {one}" for one in (1, 2, 3)),
        highlight=False,
    )
    phantoms = [
        draw_phantom(kind, FIRST_INDEX + args.first + index, PROMPT_SEED, quality=BEST_QUALITY, protocol=PRETRAINING)
        for kind in KINDS
        for index in range(args.images // len(KINDS))
    ]
    asked, spent = [phantom.label for phantom in phantoms], operations(args.pixels)
    found: dict[str, Outcome] = {}
    for name, (shortcuts, steps) in combinations(args.steps).items():
        if args.only and name != "full" and not any(word in name for word in args.only):
            continue
        config = settings(args, shortcuts, steps)
        with timed_calls(chosen.device) as seconds:
            images = sample(config, system, phantoms)
        verdicts = judge.look(expert, images)
        found[name] = Outcome(
            sum(seconds) / len(images),
            spent(shortcuts.calls(steps)),
            np.array(
                [one.kind == its.kind and one.finding == its.finding for one, its in zip(verdicts, asked, strict=True)]
            ),
            np.array(
                [
                    np.nan if its.side is None else one.side == its.side
                    for one, its in zip(verdicts, asked, strict=True)
                ],
                float,
            ),
            quality(images, asked),
            images,
        )
        if args.json:
            disk.write_json(args.json, {name: as_json(its, found["full"]) for name, its in found.items()})
    show(console, found, args)


def settings(args: argparse.Namespace, shortcuts: Shortcuts, steps: int) -> configuration.Config:
    """The configuration of a combination."""
    generation: dict[str, Any] = {
        "scheduler": "dpm",
        "num_inference_steps": steps,
        "guidance_scale": args.guidance,
        "batch_size": args.batch_size,
        "guidance_interval": list(shortcuts.guidance_interval),
        "deep_cache_every": shortcuts.deep_cache_every,
        "text_attention_until": shortcuts.text_attention_until,
    }
    return configuration.validate({"data": {"resolution": args.resolution}, "generation": generation}, "command line")


def show(console: Console, found: dict[str, Outcome], args: argparse.Namespace) -> None:
    """The table."""
    full = found["full"]
    table = Table(
        *("", "UNet ms", "saved", "GFLOP, SD v1.5", "saved", "finding, %", "difference", "side, %", "difference"),
        *("quality", "difference", "grey levels"),
        title=f"{len(full.images)} images, {args.steps} steps, guidance {args.guidance}, batch {args.batch_size}",
    )
    for name, its in found.items():
        changed = np.array([np.abs(a.astype(float) - b).mean() for a, b in zip(its.images, full.images, strict=True)])
        table.add_row(
            name,
            f"{1000 * its.seconds:.1f}",
            f"{full.seconds / its.seconds:.2f}",
            f"{its.gflop:.0f}",
            f"{full.gflop / its.gflop:.2f}",
            shown(its.right, 100),
            shown(its.right.astype(float) - full.right, 100, "+"),
            shown(its.sides, 100),
            shown(its.sides - full.sides, 100, "+"),
            shown(its.quality),
            shown(its.quality - full.quality, sign="+"),
            f"{changed.mean():.2f}",
        )
    console.print(table)


def as_json(its: Outcome, full: Outcome) -> dict[str, Any]:
    """The numbers of a row."""
    values = {"finding": (its.right.astype(float), full.right), "side": (its.sides, full.sides)}
    values["quality"] = its.quality, full.quality
    return {
        "seconds": its.seconds,
        "GFLOP": its.gflop,
        **{name: {"mean": mean(one), "difference": mean(one - other)} for name, (one, other) in values.items()},
    }


if __name__ == "__main__":
    main()
