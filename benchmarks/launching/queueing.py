"""How long it takes to queue a campaign, to look at it and to cancel it, by its number of shards."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from launching import cluster
from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign import cancel, guards
from medsyn.campaign.slurm import queue, site, submit
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.state import campaign_file, locks
from medsyn.campaign.state.campaign_file import Campaign


@dataclass(frozen=True)
class Queued:
    """One campaign, all of it queued and none of it started; seconds."""

    shards: int
    jobs: int  # tasks and gates
    sbatch_calls: int
    files: int  # that `submit` writes
    pickled_files: int  # that submitit's `map_array` writes for the generate tasks alone
    pickled: float  # and its seconds
    prepare: float
    submit: float
    squeue: float
    status: float
    again: float  # `submit` once more: nothing is left to queue
    cancel: float
    opened: float  # what every task does first: read the campaign and find itself in the plan


def measure(folder: Path, shards: int) -> Queued:
    """Queue, look at and cancel a campaign of so many shards on the cluster, which must not start anything.

    Args:
        folder: where the campaign goes.
        shards: how many, in all modalities together.
    """
    overrides = campaign_words(folder, shards)
    started = time.perf_counter()
    campaign = guards.open_for_change(configuration.load(str(cluster.CONFIG), overrides), here=False)
    prepared = time.perf_counter() - started
    profile = site.load(str(cluster.SITE))
    pickled, pickled_files = _map_array(folder / "pickles", campaign, profile)
    seconds = [_seconds_to_queue(campaign, profile)]
    files = _count_files(campaign.directory.slurm("."))
    submissions = on_record.read(campaign.directory.ledger)
    started = time.perf_counter()
    view = queue.view(submissions, timeout=600)
    squeue = time.perf_counter() - started
    jobs = len(view.tasks) + len(view.gates)
    looked = seconds_of_status(overrides)
    seconds.append(_seconds_to_queue(campaign, profile))
    started = time.perf_counter()
    campaign_file.open_campaign(campaign.directory.root).plan.find(
        "generate", campaign.plan.by_stage["generate"][-1].task.name
    )
    opened = time.perf_counter() - started
    started = time.perf_counter()
    cancel.jobs(campaign.directory, _say_nothing)
    ended = time.perf_counter() - started
    return Queued(
        shards=len(campaign.plan.by_stage["generate"]),
        jobs=jobs,
        sbatch_calls=sbatch_calls(campaign.directory.ledger),
        files=files,
        pickled_files=pickled_files,
        pickled=pickled,
        prepare=prepared,
        submit=seconds[0],
        squeue=squeue,
        status=looked,
        again=seconds[1],
        cancel=ended,
        opened=opened,
    )


def campaign_words(folder: Path, shards: int) -> list[str]:
    """Write a prompt list for `shards` blocks of one image; the words that make a campaign of it from tiny.yaml."""
    modalities = configuration.load(str(cluster.CONFIG), []).data.modalities
    lines = [f"{modalities[number % len(modalities)]}: finding {number}" for number in range(shards)]
    disk.write_atomic(folder / "prompts.txt", "".join(f"{line}\n" for line in lines))
    return [
        f"campaign.name=shards-{shards}",
        f"campaign.dir={folder / 'campaign'}",
        f"cluster.site={cluster.SITE}",
        f"data.prompts={folder / 'prompts.txt'}",
        "data.phantoms.images_per_kind=12",
        "data.phantoms.prompts_per_kind=1",
        "data.phantoms.image_size=64",
        "generation.img_num=1",
        "generation.batch_size=1",
        "generation.blocks_per_shard=1",
    ]


def _seconds_to_queue(campaign: Campaign, profile: site.Site) -> float:
    started = time.perf_counter()
    with locks.exclusive(campaign.directory.ledger, campaign.directory.root):
        submit.submit(campaign, profile, say=_say_nothing)
    return time.perf_counter() - started


def _map_array(folder: Path, campaign: Campaign, profile: site.Site) -> tuple[float, int]:
    """Seconds and files of submitit's own way to queue the generate tasks: a pickle for each."""
    tasks, chunk = campaign.plan.by_stage["generate"], submit.chunk_size(profile)
    started = time.perf_counter()
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(time=60, additional_parameters={"hold": True})
    jobs = []
    for start in range(0, len(tasks), chunk):
        jobs += executor.map_array(print, [str(planned.key) for planned in tasks[start : start + chunk]])
    seconds = time.perf_counter() - started
    queue.cancel({job.job_id for job in jobs})
    return seconds, _count_files(folder)


def _count_files(folder: Path) -> int:
    return sum(not path.is_dir() or path.is_symlink() for path in folder.rglob("*"))


def sbatch_calls(ledger: Path) -> int:
    """How many times sbatch was called, as the ledger has it."""
    return sum(event.get("event") == on_record.QUEUEING for event in disk.read_jsonl(ledger))


def seconds_of_status(overrides: Sequence[str]) -> float:
    """Seconds of the whole command `medsyn status`."""
    started = time.perf_counter()
    command = [sys.executable, "launch.py", "status", str(cluster.CONFIG), *overrides]
    subprocess.run(command, cwd=cluster.ROOT, check=False, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _say_nothing(line: str) -> None:
    pass
