"""How long a task takes from process start to work, and what it imports in that time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launching import cluster
from medsyn import disk
from medsyn.campaign.state import attempts as state_attempts
from medsyn.campaign.state import campaign_file
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, PlannedTask
from medsyn.campaign.worker import STAGE_FUNCTIONS
from medsyn.stage import CampaignDirectory

SMALL = [
    "data.modalities=[X-Ray]",
    "data.phantoms.images_per_kind=12",
    "data.phantoms.prompts_per_kind=3",
    "data.phantoms.image_size=64",
    "finetune.max_train_steps=6",
    "finetune.train_batch_size=4",
    "training.max_epochs=3",
    "generation.num_inference_steps=3",
    "generation.quality_threshold=0.3",
    "selector.require_auroc=null",
    "evaluation.kid_subsets=3",
]
JOB = "medsyn.campaign.slurm.job"  # what a job imports before its stage
WORKER = "medsyn.__main__, medsyn.campaign.worker"
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
REPEATS = 2
WAIT_SECONDS = 180.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class StartUp:
    """One task, started on its own; seconds since its process was started."""

    stage: str
    tried: float  # Python is up, the campaign is read, the task is taken
    working: float  # first step done, or first batch begun
    cpu: float  # of `working`, what processors worked for it


def run_campaign(folder: Path) -> Campaign:
    """A small campaign of the tiny model, run to its end on this machine."""
    words = [*SMALL, f"campaign.dir={folder / 'campaign'}", "--cluster", "local"]
    command = [sys.executable, "launch.py", "submit", str(cluster.CONFIG), *words]
    subprocess.run(command, cwd=cluster.ROOT, check=True, stdout=subprocess.DEVNULL)
    return campaign_file.open_campaign(folder / "campaign")


def measure(campaign: Campaign) -> list[StartUp]:
    """Start the first task of every stage again, as if it had not been done; on a CPU it makes the same again."""
    return [_start_up(campaign, tasks[0]) for tasks in campaign.plan.by_stage.values()]


def _start_up(campaign: Campaign, planned: PlannedTask) -> StartUp:
    _forget(campaign, planned)
    return start_up(campaign, planned)


def start_up(campaign: Campaign, planned: PlannedTask, to_the_end: bool = True) -> StartUp:
    """Start a task that is not done in a process of its own, as a job does.

    Args:
        campaign: the prepared campaign.
        planned: its task.
        to_the_end: whether the task may finish; if not it is killed (SIGKILL) as soon as it works.

    Raises:
        RuntimeError: the task ended before it came to its first step, or took too long.
    """
    directory = campaign.directory
    attempts = len(state_attempts.attempt_lines(directory, planned.key))
    started = time.time()
    command = [sys.executable, "-m", "medsyn", "worker", str(directory.root), *planned.key]
    with subprocess.Popen(command, cwd=cluster.ROOT, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + WAIT_SECONDS
        while not (beat := heartbeat(directory, planned.key)) or beat["time"] < started:
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise RuntimeError(f"{' '.join(planned.key)} did not come to its first step")
            time.sleep(POLL_SECONDS)
        cpu = cpu_seconds(process.pid)
        if not to_the_end:
            process.kill()
    tried = state_attempts.attempt_lines(directory, planned.key)[attempts]["time"]
    return StartUp(planned.task.stage, tried - started, beat["time"] - started, cpu)


def _forget(campaign: Campaign, planned: PlannedTask) -> None:
    directory, task = campaign.directory, planned.task
    for path in (directory.done(*planned.key), directory.heartbeat(*planned.key), directory.work(*planned.key)):
        disk.remove(path)
    if task.blocks is not None and task.modality is not None:
        for mode in campaign.config.generation.modes:
            for number in range(*task.blocks):
                disk.remove(directory.block(mode, task.modality, number))


def heartbeat(directory: CampaignDirectory, key: Key, unit: str | None = None) -> dict[str, Any] | None:
    """The task's newest heartbeat (counted in `unit`), or None."""
    beat = state_attempts.progress(directory, key)
    return beat if beat and unit in (None, beat["unit"]) else None


def cpu_seconds(process: int) -> float:
    """What processors have worked for a process of this machine so far, its threads included."""
    fields = Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def imports(stage: str | None, before: str) -> Counter[str]:
    """CPU seconds that each top-level package takes to import, those it imports itself left out.

    Python's own clock of imports counts what other processes take as well, so it only says how to divide what
    importing costs in all, Python's start included.

    Args:
        stage: whose module is imported, None for none.
        before: what is imported before it.
    """
    modules = [before, *([STAGE_FUNCTIONS[stage].partition(":")[0]] if stage else [])]
    code = f"import gc, time; gc.disable(); import {', '.join(modules)}; print(time.process_time())"
    cpu = min(float(_output([sys.executable, "-c", code])[0]) for _ in range(REPEATS))
    shares = by_package(_output([sys.executable, "-X", "importtime", "-c", code])[1].splitlines())
    whole = sum(shares.values())
    return Counter({package: cpu * seconds / whole for package, seconds in shares.items()})


def _output(command: list[str]) -> tuple[str, str]:
    done = subprocess.run(command, cwd=cluster.ROOT, check=True, capture_output=True, text=True)
    return done.stdout, done.stderr


def by_package(lines: Iterable[str]) -> Counter[str]:
    """What `python -X importtime` wrote, in seconds by top-level package."""
    seconds: Counter[str] = Counter()
    for line in lines:
        if match := _IMPORT.match(line):
            seconds.update({match[2].partition(".")[0]: int(match[1]) / 1e6})
    return seconds
