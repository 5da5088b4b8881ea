"""What does it cost to launch a campaign on Slurm, and to come back after a preemption?

    python benchmarks/launch.py                                       # every part
    python benchmarks/launch.py --parts queue --shards 10,1000
    python benchmarks/launch.py --parts startup,preemption

    queue       a campaign of so many shards is queued (nothing starts), looked at and cancelled
    startup     from the start of a task's process to its first step, and what is imported meanwhile
    between     what passes between two shards, in the process of the one before and in a new one
    preemption  an urgent job takes the node of a fine-tuning task: seconds until it works again, and whose they are

A Slurm of this machine's own is started for it (`slurm/devcluster`, whose Debian packages must be there); tasks run
the tiny model. Slurm's share of a preemption depends on the cluster's settings; ours does not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launching import between_shards, cluster, preemption, queueing, startup
from rich.console import Console
from rich.table import Table

from medsyn import disk
from medsyn.stage import STAGES

SHARDS = "10,1000,100000"
QUEUE_ROWS = {
    "check inputs, write the campaign": "prepare",
    "submit": "submit",
    "submitit's own arrays of the shards": "pickled",
    "squeue": "squeue",
    "launch.py status": "status",
    "submit again, nothing to queue": "again",
    "cancel": "cancel",
    "a task reads the campaign": "opened",
}
PACKAGES = 10  # named in the table of imports; the others are added up


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", type=_names, default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--shards", type=_numbers, default=_numbers(SHARDS), help=f"sizes of the queue ({SHARDS})")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    console, found = Console(width=None if sys.stdout.isatty() else 120), {}
    for name in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = PARTS[name](Path(folder), args.shards, console)
            except (subprocess.CalledProcessError, RuntimeError, TimeoutError) as error:
                console.print(f"{name}: {getattr(error, 'stderr', None) or error}", soft_wrap=True, highlight=False)
                return 1
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} CPUs; load of the last 1, 5 and 15 minutes {load}", highlight=False)
    if args.json:
        disk.write_json(args.json, found)
    return 0


def queue(folder: Path, shards: list[int], console: Console) -> list[dict[str, Any]]:
    """Queue a campaign of each size."""
    rows = []
    with cluster.running(accounting=0, max_array=1001, extra="MaxJobCount=200000"):
        cluster.start_nothing()
        for count in shards:
            rows.append(queueing.measure(folder / str(count), count))
    table = Table("shards", *(str(row.shards) for row in rows), title="queue", title_justify="left")
    table.add_row("jobs", *(str(row.jobs) for row in rows))
    table.add_row("sbatch calls", *(str(row.sbatch_calls) for row in rows))
    table.add_row("files written by submit", *(str(row.files) for row in rows))
    table.add_row("files of submitit's own arrays", *(str(row.pickled_files) for row in rows))
    for what, name in QUEUE_ROWS.items():
        table.add_row(f"{what}, s", *(f"{getattr(row, name):.2f}" for row in rows))
    console.print(table)
    return [asdict(row) for row in rows]


def start(folder: Path, shards: list[int], console: Console) -> dict[str, Any]:
    """Start one task of every stage, and break down what each imports."""
    rows = startup.measure(startup.run_campaign(folder))
    table = Table("stage", "campaign read", "first step", "of it CPU", title="start-up (seconds)", title_justify="left")
    for row in rows:
        table.add_row(row.stage, *(f"{seconds:.2f}" for seconds in (row.tried, row.working, row.cpu)))
    console.print(table)
    broken = {"worker": startup.imports(None, startup.WORKER), "job": startup.imports(None, startup.JOB)}
    broken |= {stage: startup.imports(stage, startup.JOB) for stage in STAGES}
    console.print(import_table(broken))
    return {"tasks": [asdict(row) for row in rows], "imports": broken}


def import_table(broken: dict[str, Counter[str]]) -> Table:
    """Packages by rows, what imports them by columns, in seconds."""
    named = [package for package, _ in sum(broken.values(), Counter()).most_common(PACKAGES)]
    table = Table("package", *broken, title="imports (CPU seconds, each package's own)", title_justify="left")
    for package in named:
        table.add_row(package, *(f"{seconds[package]:.2f}" for seconds in broken.values()))
    others = [sum(seconds[package] for package in seconds if package not in named) for seconds in broken.values()]
    table.add_row("others", *(f"{seconds:.2f}" for seconds in others))
    table.add_row("all", *(f"{sum(seconds.values()):.2f}" for seconds in broken.values()))
    return table


def between(folder: Path, shards: list[int], console: Console) -> dict[str, Any]:
    """Make shards in one process, and in one for each."""
    its = between_shards.measure(folder)
    table = Table("from a shard's last batch to the next one's first", "seconds", title="between", title_justify="left")
    table.add_row("in the same process", f"{its.same_process:.3f}")
    table.add_row("of it CPU", f"{its.same_process_cpu:.3f}")
    table.add_row("in a new process", f"{its.new_process:.3f}")
    table.add_row("(one batch of 8)", f"{its.batch:.3f}")
    console.print(table)
    return asdict(its)


def preempt(folder: Path, shards: list[int], console: Console) -> dict[str, Any]:
    """Preempt a task once."""
    with cluster.running(accounting=0, nodes=1):
        its = preemption.measure(folder)
    table = Table("from an urgent job to the next step", "whose", "seconds", title="preemption", title_justify="left")
    for what, whose, seconds in its.parts():
        table.add_row(what, whose, f"{seconds:.2f}")
    console.print(table)
    ours, slurms = its.seconds("medsyn"), its.seconds("Slurm")
    console.print(f"{ours + slurms:.1f} s, of them medsyn {ours:.1f} and Slurm {slurms:.1f}", highlight=False)
    return {**asdict(its), "medsyn": ours, "slurm": slurms}


Part = Callable[[Path, list[int], Console], Any]
PARTS: dict[str, Part] = {"queue": queue, "startup": start, "between": between, "preemption": preempt}


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return names


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 5:
        raise argparse.ArgumentTypeError("at least 5 shards: one for each modality")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
