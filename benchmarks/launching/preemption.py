"""From an urgent job's submission to the preempted task's next step, and whose seconds these are."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launching import cluster
from launching.startup import SMALL, heartbeat
from medsyn import config as configuration
from medsyn.campaign import cancel, guards
from medsyn.campaign.slurm import site, submit
from medsyn.campaign.state import attempts, locks
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key

KEY: Key = ("finetune", "x-ray")
ENDLESS = ["finetune.max_train_steps=1000000", "finetune.checkpointing_steps=1000"]
WAIT_SECONDS = 180.0
POLL_SECONDS = 0.02
T = TypeVar("T")


@dataclass(frozen=True)
class Preempted:
    """Moments, in seconds since the epoch."""

    submitted: float  # the urgent job
    asked: float  # the signal reached the task
    saved: float  # the checkpoint is on disk and the attempt's end on record
    gone: float  # the process has ended
    started: float  # the next process
    tried: float  # it has read the campaign and taken the task
    working: float  # its first step is done

    def parts(self) -> list[tuple[str, str, float]]:
        """(what, whose, seconds) from the urgent job's submission to the first step."""
        return [
            ("urgent job submitted, task asked to leave", "Slurm", self.asked - self.submitted),
            ("step finished, checkpoint saved, end on record", "medsyn", self.saved - self.asked),
            ("process ended", "medsyn", self.gone - self.saved),
            ("job requeued, urgent job run, next process started", "Slurm", self.started - self.gone),
            ("Python started and the campaign read", "medsyn", self.tried - self.started),
            ("stage imported, model and checkpoint loaded, first step", "medsyn", self.working - self.tried),
        ]

    def seconds(self, whose: str) -> float:
        """The sum of one side's parts."""
        return sum(seconds for _, its, seconds in self.parts() if its == whose)


def measure(folder: Path) -> Preempted:
    """Preempt a fine-tuning task of the tiny model on a cluster of one node.

    Args:
        folder: where the campaign goes.
    """
    words = [*SMALL, *ENDLESS, f"campaign.dir={folder / 'campaign'}", f"cluster.site={cluster.SITE}"]
    campaign = guards.open_for_change(configuration.load(str(cluster.CONFIG), words), here=False)
    directory = campaign.directory
    with locks.exclusive(directory.ledger, directory.root):
        submit.submit(campaign, site.load(campaign.config.cluster.site), {KEY}, say=lambda line: None)
    try:
        _until(lambda: heartbeat(directory, KEY, "step"), "the first step")
        first = _until(lambda: _line(campaign, "start", 1), "the task to start")
        submitted = time.time()
        urgent = ["sbatch", "--quiet", "--partition=gpu", "--exclusive", "--output=/dev/null", "--wrap=true"]
        subprocess.run(urgent, check=True, cwd=folder)
        end = _until(lambda: _line(campaign, "end", 1), "the task to save")
        _until(lambda: not Path("/proc", str(first["pid"])).exists(), "the process to end")
        gone = time.time()
        again = _until(lambda: _line(campaign, "start", 2), "the task to start again")
        started = process_start(again["pid"])
        beat = _until(lambda: heartbeat(directory, KEY, "step"), "the first step again")
    finally:
        cancel.jobs(directory, lambda line: None)
    return Preempted(submitted, end["asked"], end["time"], gone, started, again["time"], beat["time"])


def process_start(process: int) -> float:
    """When a running process of this machine began, in seconds since the epoch (Linux counts hundredths)."""
    ticks = int(Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def _line(campaign: Campaign, event: str, attempt: int) -> dict[str, Any] | None:
    lines = attempts.attempt_lines(campaign.directory, KEY)
    return next((line for line in lines if line["event"] == event and line["attempt"] == attempt), None)


def _until(condition: Callable[[], T | None], what: str) -> T:
    end = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {WAIT_SECONDS:.0f} s for {what}")
        time.sleep(POLL_SECONDS)
    return value
