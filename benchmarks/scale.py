"""What a campaign's size costs besides painting: plan, generate with a stub sampler, status, verify, merge.

    python benchmarks/scale.py --prompts 10000 100000

Each step runs in a process of its own; its seconds and its peak memory are printed, and how both grow from one size to
the next. Images are 32 pixels of one value, in tars, so that what is measured is the bookkeeping.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medsyn import config as configuration
from medsyn.config import Config

MODALITY = "CT"
STEPS = ("plan", "prepare", "generate", "status", "verify", "merge")


def make_config(root: Path) -> Config:
    """One modality, one mode, no guidance."""
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


def prepare(root: Path) -> None:
    """Check every input and write what tasks read: `launch.py submit` before anything is queued."""
    from medsyn.campaign import prepare as preparing

    preparing.prepare(make_config(root))


def plan(root: Path) -> None:
    """`launch.py plan`."""
    from medsyn.campaign import inputs

    assert inputs.check(make_config(root)).plan.tasks


def generate(root: Path) -> None:
    """Every shard, with images that cost nothing."""
    import numpy as np

    from medsyn.campaign import records
    from medsyn.generation import generate as stage
    from medsyn.generation.filter import Candidate
    from medsyn.generation.loader import Loader
    from medsyn.generation.painter import Batch, Recipe
    from medsyn.stage import Control

    class Stub:
        """Paints nothing."""

        device_name = "stub"

        def __init__(self, recipe: Recipe) -> None:
            self.recipe = recipe

        def paint(self, wanted: Any) -> Batch:
            """Grey squares."""
            candidates = [Candidate(attempt, self.recipe.image_seed(item, attempt)) for item, attempt in wanted]
            return Batch(candidates, [np.full((32, 32, 1), 128, np.uint8)] * len(wanted), 0, 0.0)

    campaign = records.open_campaign(root / "campaign")
    Loader.painter = lambda self, mode: Stub(Recipe.of(self.config, self.modality))  # type: ignore[method-assign]
    for planned in campaign.plan.by_stage["generate"]:
        stage.run(campaign.config, planned.task, campaign.directory, Control())
        records.write_done(campaign, planned, {})


def status(root: Path) -> None:
    """`launch.py status`."""
    from medsyn.campaign import records
    from medsyn.campaign.status import reading

    assert reading.read(records.open_campaign(root / "campaign")).exit_code


def verify(root: Path) -> None:
    """`python -m medsyn verify`."""
    from medsyn import verify as command

    assert command.verify("verify", [str(root / "campaign")]) == 0


def merge(root: Path) -> None:
    """`python -m medsyn merge`."""
    from medsyn import verify as command

    assert command.merge("merge", [str(root / "campaign")]) == 0


def _child(step: str, root: Path, pipe: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    body: Callable[[Path], None] = globals()[step]
    started = time.perf_counter()
    body(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((time.perf_counter() - started, peak))


def measure(step: str, root: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB of one step in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_child, args=(step, root, theirs))
    process.start()
    theirs.close()
    try:
        seconds, peak = ours.recv()
    except EOFError:
        raise SystemExit(f"{step} failed") from None
    process.join()
    return seconds, peak


def largest_directory(root: Path) -> int:
    """Entries of the fullest directory below `root`."""
    return max(len(folders) + len(files) for _, folders, files in os.walk(root))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 10_000], metavar="N")
    parser.add_argument("--directory", type=Path, help="where the campaigns are made (a temporary directory)")
    args = parser.parse_args()
    table = Table("step", *(f"{count:,} prompts" for count in args.prompts), "growth")
    found: dict[str, list[tuple[float, float]]] = {step: [] for step in STEPS}
    entries = []
    for count in args.prompts:
        with tempfile.TemporaryDirectory(dir=args.directory) as folder:
            root = Path(folder)
            write_prompts(root / "prompts.csv", count)
            for step in STEPS:
                found[step].append(measure(step, root))
            entries.append(largest_directory(root / "campaign"))
    for step, pairs in found.items():
        shown = [f"{seconds:.2f} s, {peak:.0f} MiB" for seconds, peak in pairs]
        table.add_row(step, *shown, f"{pairs[-1][0] / pairs[0][0]:.1f} x")
    table.add_row("entries of the fullest directory", *map(str, entries), "")
    Console().print(table)


if __name__ == "__main__":
    main()
