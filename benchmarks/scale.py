"""What a campaign's size costs besides painting: plan, prepare, generate with a stub sampler, status, verify, merge.

    python benchmarks/scale.py --prompts 10000 100000
    python benchmarks/scale.py --prompts 1000000 --directory SCRATCH     # some 5 GiB and 65,000 files below SCRATCH

Each step runs in a process of its own (`generate` in as many as `--processes` says, which share its shards) and shows
its seconds, the CPU seconds of all its processes and the peak memory of the largest. Growth is the seconds of the last
size by those of the first, divided by the same ratio of prompts: 1 is linear, below is better. Images are 32 pixels of
one value, in tars, so that what is measured is the bookkeeping.

Of the shards, some are started as a job starts them, with the embedded model, and killed when they ask for their first
batch; one is started again when it is done.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from launching import startup
from rich.console import Console
from rich.table import Table

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.state import campaign_file, markers
from medsyn.config import Config

ROOT = Path(__file__).parents[1]
MODALITY = "CT"
TRAINING = ("finetune", "rlhf-stage1", "rlhf-stage2")  # one step and one epoch, so that shards may start
STARTED = 3  # shards that are started for real


@dataclass
class Size:
    """What was measured of one number of prompts: seconds, CPU seconds and MiB of each step, and what is on disk."""

    prompts: int
    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    shards: int = 0
    start_up: float = 0.0  # median seconds from a process' start to the first batch of its shard
    start_up_cpu: float = 0.0
    start_up_done: float = 0.0  # of a shard that is done, until it has left
    files: int = 0
    fullest: int = 0  # entries of the fullest directory
    gib: float = 0.0


def make_config(root: Path) -> Config:
    """One modality, one mode, blocks of 64 images."""
    return configuration.validate(
        {
            "campaign": {"name": "scale", "dir": str(root / "campaign")},
            "data": {
                "modalities": [MODALITY],
                "prompts": str(root / "prompts.csv"),
                "phantoms": {"images_per_kind": 4},
                "resolution": 32,
            },
            "device": {"use_cuda": False},
            "finetune": {"max_train_steps": 1, "train_batch_size": 4, "lr_warmup_steps": 0},
            "training": {"stage": 1, "max_epochs": 1},
            "generation": {
                "modes": ["baseline"],
                "batch_size": 16,
                "batches_per_block": 4,
                "blocks_per_shard": 128,
                "output": "webdataset",
            },
        },
        "scale",
    )


def write_prompts(path: Path, count: int) -> None:
    """A list of `count` different prompts."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write("id,modality,prompt\n")
        for number in range(count):
            stream.write(f'p{number},{MODALITY},"{MODALITY}: nodule {number}"\n')


def plan(root: Path, share: slice) -> None:
    """`medsyn plan`."""
    from medsyn.campaign.plan import inputs

    assert inputs.check(make_config(root)).plan.tasks


def prepare(root: Path, share: slice) -> None:
    """Check every input and write what tasks read: `medsyn submit` before anything is queued."""
    from medsyn.campaign import guards

    guards.open_for_change(make_config(root), here=True)


def generate(root: Path, share: slice) -> None:
    """A share of the shards, with images that cost nothing."""
    import numpy as np

    from medsyn.generation import stage
    from medsyn.generation.filter import Candidate
    from medsyn.generation.sample.batch import Batch, Recipe
    from medsyn.generation.sample.load import Loader
    from medsyn.stage import Control

    class Stub:
        """Paints nothing."""

        device_name = "stub"
        overlaps = False

        def __init__(self, recipe: Recipe) -> None:
            self.recipe = recipe

        def sample(self, wanted: Any) -> Batch:
            """Grey squares."""
            candidates = [Candidate(attempt, self.recipe.image_seed(item, attempt)) for item, attempt in wanted]
            return Batch(candidates, [np.full((32, 32, 1), 128, np.uint8)] * len(wanted), 0, 0.0)

    campaign = campaign_file.open_campaign(root / "campaign")
    stub: Any = lambda self, mode: Stub(Recipe.of(self.config, self.modality))  # noqa: E731
    Loader.sampler = stub  # type: ignore[method-assign]
    for planned in campaign.plan.by_stage["generate"][share]:
        stage.run(campaign.config, planned.task, campaign.directory, Control())
        markers.write_done(campaign, planned, {})


def status(root: Path, share: slice) -> None:
    """`medsyn status`."""
    from medsyn.campaign.status import read

    assert read.read(campaign_file.open_campaign(root / "campaign")).exit_code


def verify(root: Path, share: slice) -> None:
    """`medsyn verify`."""
    from medsyn.cli import verify as cli_verify

    assert cli_verify.verify("verify", [str(root / "campaign")]) == 0


def merge(root: Path, share: slice) -> None:
    """`medsyn merge`."""
    from medsyn.cli import verify as cli_verify

    assert cli_verify.merge("merge", [str(root / "campaign")]) == 0


STEPS: dict[str, Callable[[Path, slice], None]] = {
    step.__name__: step for step in (plan, prepare, generate, status, verify, merge)
}


def _child(step: str, root: Path, share: slice, pipe: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    started = time.perf_counter()
    STEPS[step](root, share)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((time.perf_counter() - started, time.process_time(), peak))


def measure(step: str, root: Path, processes: int = 1) -> tuple[float, float, float]:
    """Seconds of the slowest, CPU seconds of all and peak memory in MiB of the largest of so many fresh processes."""
    spawn = multiprocessing.get_context("spawn")
    children = []
    for number in range(processes):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_child, args=(step, root, slice(number, None, processes), theirs))
        process.start()
        theirs.close()
        children.append((process, ours))
    try:
        ends = [ours.recv() for _, ours in children]
    except EOFError:
        raise SystemExit(f"{step} failed") from None
    for process, _ in children:
        process.join()
    seconds, cpu, peaks = zip(*ends, strict=True)
    return max(seconds), sum(cpu), max(peaks)


def start_up(root: Path) -> tuple[float, float]:
    """Median seconds and CPU seconds from the start of a shard's process to its first batch.

    The stages before `generate` are run for it.
    """
    campaign = campaign_file.open_campaign(root / "campaign")
    tasks = campaign.plan.by_stage["generate"]
    for planned in campaign.plan.tasks:
        if planned.task.stage in TRAINING:
            command = [sys.executable, "-m", "medsyn", "worker", str(root / "campaign"), *planned.key]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    chosen = [tasks[number * len(tasks) // STARTED] for number in range(STARTED)]
    for planned in chosen:
        disk.remove(campaign.directory.heartbeat(*planned.key))
    found = [startup.start_up(campaign, planned, to_the_end=False) for planned in chosen]
    return median(one.working for one in found), median(one.cpu for one in found)


def start_up_done(root: Path) -> float:
    """Seconds that the process of a shard which is done takes to find out and leave."""
    command = [sys.executable, "-m", "medsyn", "worker", str(root / "campaign"), "generate", "0"]
    seconds = []
    for _ in range(STARTED):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def run(root: Path, count: int, processes: int, tell: Callable[[str], None]) -> Size:
    """Measure everything of a campaign of `count` prompts, made in `root`."""
    size = Size(count)
    write_prompts(root / "prompts.csv", count)
    for step in STEPS:
        shared = processes if step == "generate" else 1
        if step == "generate":
            size.start_up, size.start_up_cpu = start_up(root)
            tell(f"{count:,} prompts: start-up of a shard {size.start_up:.1f} s, CPU {size.start_up_cpu:.1f} s")
        size.seconds[step], size.cpu[step], size.memory[step] = measure(step, root, shared)
        tell(f"{count:,} prompts: {step} {_cell(size, step)}")
    size.start_up_done = start_up_done(root)
    size.shards = len(campaign_file.open_campaign(root / "campaign").plan.by_stage["generate"])
    for folder, folders, files in os.walk(root / "campaign"):
        size.files += len(files)
        size.fullest = max(size.fullest, len(folders) + len(files))
        size.gib += sum(Path(folder, name).stat().st_size for name in files) / 2**30
    return size


def _cell(size: Size, step: str) -> str:
    return f"{size.seconds[step]:.2f} s, CPU {size.cpu[step]:.2f} s, {size.memory[step]:.0f} MiB"


def growth(sizes: Sequence[Size], step: str) -> str:
    """How the seconds of a step, and its CPU seconds, grow by the prompts, from the first size to the last."""
    first, last = sizes[0], sizes[-1]
    if last == first:
        return "-"
    prompts = last.prompts / first.prompts
    wall, cpu = last.seconds[step] / first.seconds[step], last.cpu[step] / first.cpu[step]
    return f"{wall / prompts:.2f}, CPU {cpu / prompts:.2f}"


def show(console: Console, sizes: Sequence[Size], processes: int) -> None:
    """The table."""
    table = Table("", *(f"{size.prompts:,} prompts" for size in sizes), "growth")
    for step in STEPS:
        name = f"{step}, {processes} processes" if step == "generate" else step
        table.add_row(name, *(_cell(size, step) for size in sizes), growth(sizes, step))
    table.add_row("shards", *(str(size.shards) for size in sizes), "")
    table.add_row(
        "start-up of a shard", *(f"{size.start_up:.1f} s, CPU {size.start_up_cpu:.1f} s" for size in sizes), ""
    )
    table.add_row("of one that is done", *(f"{size.start_up_done:.2f} s" for size in sizes), "")
    table.add_row("on disk", *(f"{size.gib:.2f} GiB, {size.files:,} files" for size in sizes), "")
    table.add_row("entries of the fullest directory", *(str(size.fullest) for size in sizes), "")
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 10_000], metavar="N")
    parser.add_argument("--directory", type=Path, help="where the campaigns are made (a temporary directory)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that share the shards of generate")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    sizes = []
    for count in args.prompts:
        with tempfile.TemporaryDirectory(dir=args.directory) as folder:
            sizes.append(run(Path(folder), count, args.processes, lambda text: print(text, flush=True)))
    show(console, sizes, args.processes)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} CPUs; load of the last 1, 5 and 15 minutes {load}", highlight=False)
    if args.json:
        disk.write_json(args.json, [asdict(size) for size in sizes])


if __name__ == "__main__":
    main()
