"""How much faster several GPUs fine-tune than one, in turns: the stage `finetune` with `finetune.gpus` 1 and N.

On a machine with GPUs each rank has one of them. Elsewhere, and with --cpu, each is a process of --threads threads; on
a processor that others use as well, only the CPU seconds say something.

    python benchmarks/finetune_ranks.py --ranks 2 --rounds 3

Prints for every round: samples per second of both (the median over the lines of metrics.jsonl but the first) and their
ratio; CPU seconds a sample, of all processes, and how much more that is with N; whether both have the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from typing import Any

from medsyn import disk
from medsyn.config import validate
from medsyn.models.visible_gpus import visible_gpus
from medsyn.models.weights import UNET_WEIGHTS
from medsyn.stage import CampaignDirectory, Control, Task


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="embedded", help="a diffusers directory, or embedded")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8, help="samples of a forward pass")
    parser.add_argument("--accumulation", type=int, default=2, help="forward passes of a step on one GPU")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a rank")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # a child's number of ranks
    return parser.parse_args(words)


class CpuClock(Control):
    """Counts the CPU seconds of this process and its children from the first step on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.seconds = 0.0, 0.0

    def heartbeat(self, step: int, total: int, unit: str = "step", **_: Any) -> None:
        """Look at the clock."""
        if unit == "step":
            now = sum(map(_cpu_seconds, [os.getpid(), *(child.pid or 0 for child in active_children())]))
            self.begun = now if step == 1 else self.begun
            self.seconds = now - self.begun


def _cpu_seconds(process: int) -> float:
    """Of a process of this machine, so far."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime and stime


def measure(ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune on so many ranks in this process and its children."""
    from finetuning.ways import write_images

    from medsyn.training.finetune import stage

    with tempfile.TemporaryDirectory() as folder:
        table = write_images(Path(folder), 32, args.resolution)
        section = {"train_batch_size": args.batch_size, "gradient_accumulation_steps": args.accumulation, "gpus": ranks}
        tree = {
            "data": {"table": str(table), "resolution": args.resolution},
            "model_paths": {"stable_diffusion": args.model},
            "device": {"use_cuda": not args.cpu and bool(visible_gpus()), "cpu_threads": args.threads},
            "finetune": {"max_train_steps": args.steps, "lr_warmup_steps": 0, **section},
        }
        directory = CampaignDirectory(Path(folder) / "run")
        clock = CpuClock()
        stage.run(validate(tree, "benchmark"), Task("finetune", 0, "ct", "CT"), directory, clock)
        lines = list(disk.read_jsonl(directory.work("finetune", "ct") / "metrics.jsonl"))
        weights = directory.finetuned_unet("CT") / "unet" / UNET_WEIGHTS
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    samples = (args.steps - 1) * args.batch_size * args.accumulation
    speed = median(line["samples_per_second"] for line in lines[1:])
    return {"speed": speed, "cpu": clock.seconds / samples, "weights": digest}


def main() -> None:
    """Measure and print."""
    args = arguments()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    rounds = []
    for number in range(args.rounds):
        found = {}
        for ranks in (1, args.ranks):
            command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--only", str(ranks)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[ranks] = json.loads(done.stdout.splitlines()[-1])
        rounds.append(found)
        one, several = found[1], found[args.ranks]
        same = "the same weights" if one["weights"] == several["weights"] else "weights that differ by rounding"
        print(
            f"round {number + 1}: {one['speed']:.3g} and {several['speed']:.3g} samples/s, "
            f"{several['speed'] / one['speed']:.2f} times; {one['cpu']:.3g} and {several['cpu']:.3g} CPU s a sample, "
            f"{several['cpu'] / one['cpu']:.2f} times; {same}",
            flush=True,
        )
    for key, what in (("speed", "times as fast as one"), ("cpu", "times its CPU seconds a sample")):
        ratios = [found[args.ranks][key] / found[1][key] for found in rounds]
        print(f"{args.ranks} ranks: {median(ratios):.2f} {what} (median of {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
