"""How long does `medsyn status` take for a campaign of many shards?

    python benchmarks/status.py --shards 10000

Makes a campaign of two modalities in a temporary directory. Markers of the first half of its shards, and records of
200 that run or were preempted, are written as workers write them; a `squeue` that prints the other half stands in for
Slurm's. `status` is timed as a whole process, in turns with the summaries of done tasks and without them, when it reads
every marker. The ratio at the end is without to with. CPU seconds do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign import guards
from medsyn.campaign.slurm import submissions
from medsyn.campaign.state import done_index, ledger, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import PlannedTask

ROOT = Path(__file__).parents[1]
MODALITIES = ("CT", "OCT")
BLOCKS, BATCH = 4, 2  # blocks a shard, images a block
RUNNING, TRIED = 64, 200
ARRAY = 1000  # elements


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        config = _write_config(folder, args.shards)
        campaign = guards.open_for_change(configuration.load(str(config)), here=False)
        shards = campaign.plan.by_stage["generate"]
        _write_records(campaign, shards)
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        times = {"with summaries": [_time(config, environment)], "without": []}
        hidden = {
            path: path.with_suffix(".hidden") for path in (campaign.directory.root / "tasks").glob("*/done.jsonl")
        }
        for _ in range(args.repeat):
            times["with summaries"].append(_time(config, environment))
            for path, other in hidden.items():
                path.rename(other)
            times["without"].append(_time(config, environment))
            for path, other in hidden.items():
                other.rename(path)
    print(f"{len(shards)} shards, median of {args.repeat}:")
    for name, found in times.items():
        wall, cpu = (statistics.median(one[kind] for one in found[-args.repeat :]) for kind in (0, 1))
        print(f"  {name:<15} {wall:.2f} s, CPU {cpu:.2f} s")
    ratio = statistics.median(one[1] for one in times["without"]) / statistics.median(
        one[1] for one in times["with summaries"][1:]
    )
    print(f"  CPU without / with: {ratio:.2f}")
    return 0


def _write_config(folder: Path, shards: int) -> Path:
    count = shards * BLOCKS * BATCH // len(MODALITIES)
    lines = [f"{modality}: picture {number}" for modality in MODALITIES for number in range(count)]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    tree = {
        "campaign": {"name": "many", "dir": str(folder / "campaign")},
        "data": {
            "modalities": list(MODALITIES),
            "phantoms": {"images_per_kind": 8},
            "prompts": str(folder / "prompts.txt"),
        },
        "device": {"use_cuda": False},
        "generation": {"batch_size": BATCH, "blocks_per_shard": BLOCKS},
    }
    path = folder / "many.yaml"
    path.write_text(configuration.save(configuration.validate(tree, "benchmark")))
    return path


def _write_records(campaign: Campaign, shards: list[PlannedTask]) -> None:
    """Half of the shards done, some running or preempted, the rest pending."""
    directory, half = campaign.directory, len(shards) // 2
    done = [planned for planned in campaign.plan if planned.task.stage not in ("generate", "evaluate")]
    for planned in (*done, *shards[:half]):
        _write_marker(campaign, planned)
    jobs = []
    for number, (job, planned) in enumerate(_queue(campaign, shards)):
        place = number - half
        if place >= 0:
            jobs.append(f"{job}|{'RUNNING' if place < RUNNING else 'PENDING'}|Resources|n1||many")
        if 0 <= place < TRIED:
            start = {"event": "start", "time": time.time(), "host": "n1", "pid": 1, "job": job, "progress": None}
            disk.append_jsonl(directory.attempts(*planned.key), start)
    program = directory.root.parent / "bin" / "squeue"
    program.parent.mkdir()
    program.with_name("jobs").write_text("\n".join(jobs) + "\n")
    program.write_text(f"#!/bin/sh\ncat {program.with_name('jobs')}\n")
    program.chmod(0o755)


def _queue(campaign: Campaign, shards: list[PlannedTask]) -> Iterator[tuple[str, PlannedTask]]:
    """Write arrays of all shards into the ledger; yield Slurm's id of every element."""
    for start in range(0, len(shards), ARRAY):
        part, job = shards[start : start + ARRAY], str(1 + start)
        names = [planned.task.name for planned in part]
        facts = {"round": "r", "name": job, "kind": "tasks", "stage": "generate", "tasks": names, "job": job}
        ledger.record(campaign.directory.ledger, submissions.QUEUED, **facts)
        yield from ((f"{job}_{index}", planned) for index, planned in enumerate(part))
    ledger.record(campaign.directory.ledger, submissions.RELEASED, round="r")


def _write_marker(campaign: Campaign, planned: PlannedTask) -> None:
    """What `records.write_done` leaves; the files it lists are not there, and status does not look at them."""
    files = [{"path": str(path), "size": 1234, "sha256": "0" * 64} for path in markers.outputs(campaign, planned)]
    made = {"made": BLOCKS * BATCH, "accepted": BLOCKS * BATCH, "candidates": 2 * BLOCKS * BATCH}
    marker = {
        "fingerprint": markers.task_fingerprint(campaign, planned),
        "time": time.time(),
        "attempts": 1,
        "seconds": 600.0,
        "spent": 600.0,
        "images": dict.fromkeys(campaign.config.generation.modes, made) if planned.task.blocks else {},
        "outputs": files,
    }
    disk.write_json(campaign.directory.done(*planned.key), marker)
    done_index.append(campaign.directory, *planned.key, marker)


def _time(config: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one `status`."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    words = [sys.executable, str(ROOT / "launch.py"), "status", str(config)]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode != 75:
        raise RuntimeError(result.stdout + result.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
