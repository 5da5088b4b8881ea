"""How much of a fine-tuning's steps is neither the UNet's passes nor its update, beside what the plan estimates.

    python benchmarks/finetune_waits.py           the embedded model; a checkpoint and an average every 5 steps
    python benchmarks/finetune_waits.py --shape sd15 --resolution 128 --batch-size 1 --steps 4 --every 2
                                                  SD v1.5's shape: 40 GiB of memory, 40 of disk
    python benchmarks/finetune_waits.py --plan    only the estimates of the configurations for SD v1.5

Measures four runs in turns: without averages and checkpoints, with averages, with both, and with a held-out loss, one
process. Beside what is measured stands what `medsyn plan` counts for the same settings on this device, at the rate that
the first run had. The passes of a held-out loss count as passes: it shows in the seconds of a step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PLANNED = (("sd15-pascal", 5.9), ("sd15", 10.0), ("sd15", 30.0), ("sd15", 100.0))  # TFLOP/s
IMAGES = 64  # a fifth as many are held out besides
KINDS: dict[str, dict[str, Any]] = {
    "neither": {"use_ema": False, "checkpointing_steps": 10**6},
    "averages": {"use_ema": True, "checkpointing_steps": 10**6},
    "averages and checkpoints": {"use_ema": True},
    "a held-out loss": {"use_ema": False, "checkpointing_steps": 10**6, "validate_every": 5},
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "sd15"), default="tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between averages, and between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others work, too")
    parser.add_argument("--plan", action="store_true", help="measure nothing")
    return parser.parse_args(words)


def measure(kind: str, args: argparse.Namespace) -> tuple[float, float, float]:
    """The share outside of passes and updates, seconds of a step, and TFLOP/s of the passes."""
    from finetuning import ways
    from finetuning.meter import CLOCKS, Meter
    from painting.models import sd15

    from medsyn.campaign.estimate import architecture
    from medsyn.config import DeviceSection
    from medsyn.models.device import choose_device
    from medsyn.models.stable_diffusion import load_synthetic

    device = choose_device(DeviceSection(cpu_threads=args.threads)).device
    meter, system = Meter(device, CLOCKS[args.clock]), load_synthetic("embedded", device)
    if args.shape == "sd15":
        sd15(system)
    with tempfile.TemporaryDirectory() as folder:
        table = ways.write_images(Path(folder), IMAGES, args.resolution)
        section = {"ema_every": args.every, "checkpointing_steps": args.every, "train_batch_size": args.batch_size}
        section |= {"gradient_accumulation_steps": 1, **_section(kind, args)}
        config = ways.settings(table, args.resolution, 1 + args.steps, **section)
        ways.medsyn(config, system, Path(folder) / "run", meter, 1)
    shape = architecture.read("embedded" if args.shape == "tiny" else "none", args.resolution)
    passes = 3 * args.batch_size * args.steps * shape.unet.flops
    outside = 1 - sum(meter.parts.values()) / meter.seconds
    return outside, meter.seconds / args.steps, passes / meter.parts["unet"] / 1e12


def _section(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    validates = {"validate_every": args.every} if "validate_every" in KINDS[kind] else {}
    return KINDS[kind] | validates


def planned(name: str, tflops: float, on_gpu: bool = True, **changes: Any) -> Any:
    """What the plan counts for a configuration of the repository."""
    from medsyn import config as configuration
    from medsyn.campaign.estimate.cost import CostModel
    from medsyn.campaign.estimate.workload import Volume

    overrides = [f"{key}={value}" for key, value in {"cluster.tflops": tflops, **changes}.items()]
    model = CostModel(configuration.load(ROOT / "configs" / f"{name}.yaml", overrides), {}, on_gpu)
    return model.finetuning(Volume(images=IMAGES, held_out=IMAGES // 4))


def main() -> None:
    """Measure and print."""
    args, console = arguments(), Console(width=110)
    if not args.plan:
        import torch

        shown = Table("", title_justify="left")
        for column in ("outside, measured", "estimated", "a step, s", "estimated"):
            shown.add_column(column, justify="right")
        rate = 0.0
        for kind in KINDS:
            outside, seconds, tflops = measure(kind, args)
            rate = rate or tflops
            name = "tiny" if args.shape == "tiny" else "sd15"
            changes = {"finetune.ema_every": args.every, "finetune.checkpointing_steps": args.every}
            changes |= {"finetune.train_batch_size": args.batch_size, "finetune.gradient_accumulation_steps": 1}
            changes |= {"data.resolution": args.resolution, "finetune.max_train_steps": args.steps}
            changes |= {f"finetune.{key}": value for key, value in _section(kind, args).items()}
            found = planned(name, rate, torch.cuda.is_available(), **changes)
            times = args.steps // args.every  # of a validation: the first is before the clock starts
            steps = found.unet + found.update + found.waiting + found.validating * times / (times + 1)
            told = (f"{outside:.1%}", f"{found.outside:.1%}", f"{seconds:.3g}", f"{steps / args.steps:.3g}")
            shown.add_row(kind, *told)
        console.print(f"{args.shape}, batch {args.batch_size} at {args.resolution} px, every {args.every} steps")
        console.print(shown)
    shown = Table("estimated", "TFLOP/s", "a step, s", "its update", "outside")
    for name, tflops in PLANNED:
        found = planned(name, tflops)
        seconds = (found.unet + found.update + found.waiting) / 2000
        update = found.update / 2000 / seconds
        shown.add_row(f"{name}.yaml", f"{tflops:g}", f"{seconds:.2f}", f"{update:.1%}", f"{found.outside:.2%}")
    console.print(shown)


if __name__ == "__main__":
    main()
