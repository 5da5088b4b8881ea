"""How long does a campaign take, and where does the time go?

    python benchmarks/end_to_end.py                          # runs configs/tiny.yaml in a temporary directory
    python benchmarks/end_to_end.py --campaign runs/tiny     # reads one that has run
    python benchmarks/end_to_end.py --forks 2                # tasks as forks against tasks as new processes, two turns
    python benchmarks/end_to_end.py --against COMMIT         # this state of the repository against another

Wall time of a stage is the time during which one of its tasks was running; task time is that of all its tasks added
up. Of the task time, `working` is what the stages themselves recorded (optimizer steps, batches of images). The rest is
loading, encoding, saving and waiting, and importing where tasks are not forks (MEDSYN_FORK=0, Slurm). The ratio at the
end is working to task time.

With `--forks` the campaign runs both ways in turns, new processes first, after the judge has been made; the ratios are
of the better turns. So it does with `--against`, the other state first, which runs its own configuration from a clone
in the same environment, where its packages must be. Each has a cache of its own, in which a turn that does not count
has made the judge (`--cold`: no such turn, as for somebody who runs it for the first time).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medsyn import disk
from medsyn.campaign.local.processes import FORK_VARIABLE
from medsyn.campaign.state import campaign_file, ledger
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.evaluation import judge
from medsyn.evaluation.read_campaign import stage_times
from medsyn.evaluation.report_tables import duration
from medsyn.generation.block_store import TIMING
from medsyn.stage import slug
from medsyn.user_cache import CACHE_VARIABLE

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """One stage."""

    stage: str
    tasks: int
    attempts: int
    wall: float
    task: float
    working: float | None  # None: the stage does not record it


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--campaign", type=Path, help="directory of a campaign that has run")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "tiny.yaml", help="what to run otherwise")
    parser.add_argument("--forks", type=int, metavar="TURNS", help="compare both ways to start tasks")
    parser.add_argument("--against", metavar="COMMIT", help="compare with another state of this repository")
    parser.add_argument("--turns", type=int, default=1, help="with --against (1)")
    parser.add_argument("--cold", action="store_true", help="with --against: nothing is in a user's cache")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    args = parser.parse_intermixed_args()
    if args.forks or args.against:
        if args.against:
            turns = compare_states(args.against, args.config, args.overrides, args.turns, args.cold)
        else:
            turns = compare(args.config, args.overrides, args.forks)
        show_turns(Console(), turns)
        if args.json:
            disk.write_json(args.json, turns)
        return 0
    with tempfile.TemporaryDirectory() if args.campaign is None else nullcontext(args.campaign) as directory:
        root, whole = Path(directory), None
        if args.campaign is None:
            root = root / "campaign"
            started = time.perf_counter()
            submit(args.config, root, args.overrides)
            whole = time.perf_counter() - started
        campaign = campaign_file.open_campaign(root)
        rows = [row for row in measure(campaign) if row.attempts]
        show(Console(), campaign, rows, whole)
        if args.json:
            disk.write_json(args.json, {"seconds": whole, "stages": [vars(row) for row in rows]})
    return 0


def submit(config: Path, directory: Path, overrides: list[str], root: Path = ROOT) -> None:
    """Run a whole campaign in `directory`, as a user would, with the checkout `root`."""
    command = [sys.executable, "launch.py", "submit", str(config.absolute()), "--cluster", "local"]
    subprocess.run([*command, f"campaign.dir={directory}", *overrides], cwd=root, check=True)


Turn = dict[str, float]  # seconds, "wall" and "cpu"


def compare(config: Path, overrides: list[str], turns: int) -> dict[str, list[Turn]]:
    """Run a campaign both ways in turns; what each took, by way."""
    with tempfile.TemporaryDirectory() as directory:
        judge.load_or_train(Path(directory))  # now it is in the user's cache, and no turn has to make it
    found: dict[str, list[Turn]] = {"new processes": [], "forks": []}
    for _ in range(turns):
        for number, its in enumerate(found.values()):
            os.environ[FORK_VARIABLE] = str(number)
            its.append(turn(config, overrides))
    return found


def turn(config: Path, overrides: list[str], root: Path = ROOT) -> Turn:
    """What one run takes."""
    with tempfile.TemporaryDirectory() as directory:
        cpu, wall = child_seconds(), time.perf_counter()
        submit(config, Path(directory) / "campaign", overrides, root)
        return {"wall": time.perf_counter() - wall, "cpu": child_seconds() - cpu}


def compare_states(commit: str, config: Path, overrides: list[str], turns: int, cold: bool) -> dict[str, list[Turn]]:
    """Run a campaign with another state of the repository and with this one in turns; what each took."""
    found: dict[str, list[Turn]] = {commit: [], "this": []}
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "checkout"
        subprocess.run(["git", "clone", "-q", "--no-checkout", str(ROOT), str(other)], check=True)
        subprocess.run(["git", "checkout", "-q", commit], cwd=other, check=True)
        roots = {commit: other, "this": ROOT}
        for number in range(turns + (not cold)):
            for name, root in roots.items():
                os.environ["PYTHONPATH"] = str(root)
                os.environ[CACHE_VARIABLE] = str(Path(folder) / f"cache-{name == 'this'}")
                its = turn(root / config.absolute().relative_to(ROOT), overrides, root)
                if cold or number:
                    found[name].append(its)
    return found


def child_seconds() -> float:
    """CPU seconds of all processes that this one has waited for, and of those below them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show_turns(console: Console, turns: dict[str, list[Turn]]) -> None:
    """The table of both ways, and the ratios."""
    table = Table("tasks are", "wall s", "CPU s")
    for name, its in turns.items():
        table.add_row(name, *(" ".join(f"{turn[clock]:.1f}" for turn in its) for clock in ("wall", "cpu")))
    console.print(table)
    best = {name: {clock: min(turn[clock] for turn in its) for clock in ("wall", "cpu")} for name, its in turns.items()}
    old, new = best
    ratios = [best[new][clock] / best[old][clock] for clock in ("wall", "cpu")]
    console.print(f"{new} : {old}, wall {ratios[0]:.2f}, CPU {ratios[1]:.2f}")


def measure(campaign: Campaign) -> list[Row]:
    """Every stage that has run."""
    walls = ledger.stage_seconds(campaign.directory.ledger)
    return [
        Row(
            stage=times.stage,
            tasks=times.tasks,
            attempts=times.attempts,
            wall=walls.get(times.stage, times.seconds),
            task=times.seconds,
            working=working_seconds(campaign, times.stage),
        )
        for times in stage_times(campaign.directory)
    ]


def working_seconds(campaign: Campaign, stage: str) -> float | None:
    """What a stage recorded of its own work, or None."""
    directory, config = campaign.directory, campaign.config
    if stage == "finetune":
        batch = config.finetune.train_batch_size * config.finetune.gradient_accumulation_steps
        total = 0.0
        for modality in config.data.modalities:
            done = 0
            for line in disk.read_jsonl(directory.work(stage, slug(modality)) / "metrics.jsonl"):
                total += (line["step"] - done) * batch / max(line["samples_per_second"], 1e-9)
                done = line["step"]
        return total
    if stage == "generate":
        blocks = directory.root.glob(f"work/generate/*/*/*/*/{TIMING}")
        return sum(float(disk.read_json(path)["seconds"]) for path in blocks)
    return None


def show(console: Console, campaign: Campaign, rows: list[Row], whole: float | None) -> None:
    """The table, and the ratio."""
    table = Table("stage", "tasks", "attempts", "wall", "task time", "working", "ratio", title="seconds")
    for row in rows:
        seconds = [f"{value:.1f}" for value in (row.wall, row.task)]
        recorded = ["-", "-"] if row.working is None else [f"{row.working:.1f}", f"{row.working / row.task:.2f}"]
        table.add_row(row.stage, str(row.tasks), str(row.attempts), *seconds, *recorded)
    console.print(table)
    events = [event["time"] for event in disk.read_jsonl(campaign.directory.ledger)]
    span = max(events) - min(events) if events else None
    console.print(
        f"first to last event {duration(span)}" + ("" if whole is None else f", whole command {duration(whole)}")
    )
    known = [row for row in rows if row.working is not None]
    task = sum(row.task for row in known)
    if task:
        working = sum(row.working or 0.0 for row in known)
        names = " and ".join(row.stage for row in known)
        console.print(f"{names}: working : task time {working / task:.2f}")


if __name__ == "__main__":
    sys.exit(main())
