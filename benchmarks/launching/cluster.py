"""A one-machine Slurm (`slurm/devcluster`) for as long as a measurement takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny.yaml"
SITE = ROOT / "slurm" / "devcluster.yaml"
DEVCLUSTER = ROOT / "slurm" / "devcluster"
PARTITION = "preempt"  # the site profile's for tasks
_FOREIGN = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SRUN_")


@contextmanager
def running(**settings: object) -> Iterator[None]:
    """Start a cluster of its own, the only Slurm in this process' environment; end and remove it afterwards.

    Args:
        settings: of `slurm/devcluster`.

    Raises:
        subprocess.CalledProcessError: it does not start; what is missing it has said itself.
    """
    directory = Path(tempfile.mkdtemp(prefix="medsyn-bench-", dir="/tmp"))  # Slurm's paths have to be short
    before = dict(os.environ)
    words = [f"{name}={value}" for name, value in settings.items()]
    try:
        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            del os.environ[name]
        subprocess.run([DEVCLUSTER, "start", "--dir", directory, *words], check=True, stderr=subprocess.PIPE, text=True)
        os.environ["SLURM_CONF"] = str(directory / "etc" / "slurm.conf")
        yield
    finally:
        subprocess.run([DEVCLUSTER, "stop", "--dir", directory], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(directory, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def start_nothing() -> None:
    """Let jobs of the tasks' partition be queued and none of them start."""
    subprocess.run(["scontrol", "update", f"PartitionName={PARTITION}", "State=DOWN"], check=True)
