"""How fast and in how much memory a UNet is fine-tuned, in turns: medsyn, and the loop of diffusers' example.

(a) the loop of diffusers' `train_text_to_image` example: every step decodes its images and runs VAE and text encoder;
(b) medsyn, all weights: latents and text features are encoded once;
(c) medsyn with LoRA of rank 16.

Every round runs each way in a process of its own, one after the other, so that its peak of memory is its own. The same
images, batch, AdamW and min-SNR weights; random weights, as speed does not depend on them.

    python benchmarks/finetune.py                                              the embedded model
    python benchmarks/finetune.py --shape sd15 --resolution 256 --batch-size 1 --steps 1 --warmup 0 --rounds 1
                                                          SD v1.5's shape: 15 GiB of memory, minutes a step on a CPU

Prints samples per second, the ratio to (a) of every round (their median, and all of them), how much of the time is
outside the UNet's forward and backward passes (the optimizer's part apart), and the peak of memory while training: of a
GPU's memory, or of the process. Encoding, which (b) and (c) do once, is told apart: seconds an image.

`--clock cpu` counts the CPU seconds of the process instead of seconds, for a CPU that others use as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = {"a": "(a) diffusers' example", "b": "(b) medsyn", "c": "(c) medsyn, LoRA"}
RANK = 16
GIB = 2**30


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "sd15"), default="tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16, help="samples of a forward pass")
    parser.add_argument("--accumulation", type=int, default=1, help="forward passes of an optimizer step")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps that count")
    parser.add_argument("--warmup", type=int, default=1, help="optimizer steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what a second is")
    parser.add_argument("--ways", default="abc", help="which of them")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--only", choices=tuple(NAMES), help=argparse.SUPPRESS)  # a child's way
    return parser.parse_args(words)


def measure(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one way in this process."""
    import torch
    from finetuning import ways
    from finetuning.meter import CLOCKS, Meter, peak_bytes
    from painting.models import sd15

    from medsyn.config import DeviceSection
    from medsyn.models.device import choose_device
    from medsyn.models.stable_diffusion import load_synthetic

    device = choose_device(DeviceSection(cpu_threads=args.threads)).device
    meter = Meter(device, CLOCKS[args.clock])
    system = load_synthetic("embedded", device)
    if args.shape == "sd15":
        sd15(system)
    samples = args.batch_size * args.accumulation
    section: dict[str, Any] = {"train_batch_size": args.batch_size, "gradient_accumulation_steps": args.accumulation}
    if way == "c":
        section["lora"] = {"rank": RANK}
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"}
    with tempfile.TemporaryDirectory() as folder:
        table = ways.write_images(Path(folder), min(samples, 32), args.resolution)
        config = ways.settings(table, args.resolution, args.warmup + args.steps, **section)
        if way == "a":
            ways.diffusers(config, system, meter, args.warmup)
        else:
            found["encoding"] = ways.medsyn(config, system, Path(folder) / "run", meter, args.warmup)
    outside = meter.seconds - sum(meter.parts.values())
    return {
        **found,
        "samples_per_second": meter.steps * samples / meter.seconds,
        "unet": meter.parts["unet"] / meter.seconds,
        "optimizer": meter.parts["optimizer"] / meter.seconds,
        "other": outside / meter.seconds,
        "peak": peak_bytes(device),
    }


def in_a_child(way: str, words: list[str]) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, str(Path(__file__)), *words, "--only", way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(rounds: list[dict[str, dict[str, Any]]], way: str) -> list[float]:
    """Samples per second of a way to those of (a), of each round."""
    return [found[way]["samples_per_second"] / found["a"]["samples_per_second"] for found in rounds if "a" in found]


def table(rounds: list[dict[str, dict[str, Any]]]) -> Table:
    """What is printed: medians of the rounds."""
    shown = Table("", title_justify="left")
    for column in ("samples/s", "to (a)", "of each round", "outside the UNet", "optimizer", "peak GiB", "encoding, s"):
        shown.add_column(column, justify="right")
    for way in rounds[0]:
        values = {key: median(found[way].get(key, 0) for found in rounds) for key in rounds[0][way] if key != "device"}
        against = ratios(rounds, way)
        shown.add_row(
            NAMES[way],
            f"{values['samples_per_second']:.3g}",
            f"{median(against):.2f}" if against else "",
            ", ".join(f"{ratio:.2f}" for ratio in against),
            f"{values['other']:.1%}",
            f"{values['optimizer']:.1%}",
            f"{values['peak'] / GIB:.2f}",
            f"{values['encoding']:.2g}" if "encoding" in values else "",
        )
    return shown


def main() -> None:
    """Measure and print."""
    args = arguments()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    rounds = [{way: in_a_child(way, sys.argv[1:]) for way in args.ways} for _ in range(args.rounds)]
    console = Console(width=130)
    first = next(iter(rounds[0].values()))
    size = f"batch {args.batch_size} x {args.accumulation} at {args.resolution} px"
    console.print(f"{args.shape} on {first['device']}, {args.threads} threads, {size}, {args.clock} seconds")
    console.print(table(rounds))
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "rounds": rounds}, default=str, indent=1))


if __name__ == "__main__":
    main()
