"""What passes between two shards: in the process that made the one before, and in a new process."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from launching import cluster
from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign import guards, worker
from medsyn.campaign.state import campaign_file
from medsyn.campaign.state.campaign_file import Campaign

SHARDS = 4
WORDS = [
    "data.modalities=[X-Ray]",
    "data.phantoms.images_per_kind=12",
    "data.phantoms.image_size=64",
    "generation.modes=[baseline]",
    "generation.img_num=1",
    "generation.batch_size=8",
    "generation.blocks_per_shard=1",
    "generation.num_inference_steps=20",
    f"data.phantoms.prompts_per_kind={8 * SHARDS}",
]
_EACH = "import sys; from launching.between_shards import make; make(sys.argv[1], sys.argv[2:])"


@dataclass(frozen=True)
class Between:
    """Seconds from the end of a shard's last batch to the begin of the next shard's first one, and of one batch."""

    same_process: float
    same_process_cpu: float  # what processors worked meanwhile
    new_process: float
    batch: float


@dataclass(frozen=True)
class _Batch:
    began: float
    ended: float
    cpu_began: float  # of the process, since its start
    cpu_ended: float


def measure(folder: Path) -> Between:
    """Make the same shards in one process, and each in a process of its own; the median of what is between them."""
    settings = configuration.load(str(cluster.CONFIG), [*WORDS, f"campaign.dir={folder / 'campaign'}"])
    campaign = guards.open_for_change(settings, here=True)
    shards = [planned.task.name for planned in campaign.plan.by_stage["generate"]]
    found: list[list[_Batch]] = []
    for processes in ([shards], [[shard] for shard in shards]):
        _forget(campaign)
        for names in processes:
            words = [sys.executable, "-c", _EACH, str(campaign.directory.root), *names]
            subprocess.run(words, cwd=cluster.ROOT / "benchmarks", check=True, stdout=subprocess.DEVNULL)
        found.append(_batches(campaign))
    same, new = found
    return Between(
        same_process=_middle([after.began - before.ended for before, after in pairwise(same)]),
        same_process_cpu=_middle([after.cpu_began - before.cpu_ended for before, after in pairwise(same)]),
        new_process=_middle([after.began - before.ended for before, after in pairwise(new)]),
        batch=_middle([one.ended - one.began for one in same]),
    )


def make(root: str, names: list[str]) -> None:
    """Make these shards in this process, as a job does; when each batch begins and ends is on record."""
    campaign = campaign_file.open_campaign(Path(root))
    session = worker.Session(campaign, worker.STAGE_FUNCTIONS)
    worker.load(worker.STAGE_FUNCTIONS["generate"], campaign.config.device.cpu_threads)
    _watch(Path(root))
    for name in names:
        code = session.run(campaign.plan.find("generate", name))
        assert code == 0, code


def _watch(root: Path) -> None:
    from medsyn.generation.sample.batch import ImageSampler

    real = ImageSampler.sample

    def watched(*arguments: Any, **named: Any) -> Any:
        began, cpu = time.time(), time.process_time()
        result = real(*arguments, **named)
        its = _Batch(began, time.time(), cpu, time.process_time())
        disk.append_jsonl(root / "batches.jsonl", asdict(its))
        return result

    ImageSampler.sample = watched  # type: ignore[method-assign]


def _forget(campaign: Campaign) -> None:
    for folder in (campaign.directory.root / "work" / "generate", campaign.directory.root / "tasks" / "generate"):
        shutil.rmtree(folder, ignore_errors=True)
    (campaign.directory.root / "batches.jsonl").unlink(missing_ok=True)


def _batches(campaign: Campaign) -> list[_Batch]:
    """The only batch of each shard, in the order of making."""
    return [_Batch(**line) for line in disk.read_jsonl(campaign.directory.root / "batches.jsonl")]


def _middle(numbers: list[float]) -> float:
    return sorted(numbers)[len(numbers) // 2]
