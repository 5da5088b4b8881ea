"""What `medsyn doctor` says of Slurm: version, partitions with GPUs, accounting, and whether it would take a job."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from medsyn.campaign.slurm import queue
from medsyn.doctor.diagnosis import SUBMITTING, Diagnosis
from medsyn.errors import SlurmError
from medsyn.text import and_more

_SHOWN = 6
_PROFILE = "a site profile (cluster.site) names account, partition and time limit"


def check_cluster() -> Iterator[Diagnosis]:
    """Ask Slurm, and queue nothing."""
    if shutil.which("sbatch") is None:
        yield Diagnosis("slurm", "no sbatch here: campaigns run with --cluster local")
        return
    try:
        yield Diagnosis("slurm", queue.call("sbatch", "--version").strip())
        yield _partitions(queue.call("sinfo", "-h", "-a", "-o", "%R|%l|%D|%G"))
        yield _accounting(queue.cluster_settings())
    except SlurmError as error:
        yield Diagnosis("slurm", str(error), "note", "it cannot be asked from here: ask on a login node")
        return
    try:
        queue.call("sbatch", "--test-only", "--wrap", "true")
        yield Diagnosis(SUBMITTING, "yes (sbatch --test-only)")
    except SlurmError as error:
        yield Diagnosis(SUBMITTING, str(error), "note", f"perhaps not without options: {_PROFILE}")


def _partitions(listing: str) -> Diagnosis:
    """Those with GPUs, from `sinfo -o %R|%l|%D|%G`: a line for each kind of node."""
    names, with_gpus = set(), []
    for line in listing.splitlines():
        name, limit, nodes, resources = line.strip().split("|", 3)
        names.add(name)
        if "gpu" in resources:
            kinds = ",".join(part.partition("(")[0] for part in resources.split(",") if part.startswith("gpu"))
            with_gpus.append(f"{name}: {nodes} x {kinds}, time limit {limit}")
    if not with_gpus:
        advice = "tasks would compute on processors: device.use_cuda=false"
        return Diagnosis("slurm partitions", f"{and_more(sorted(names), _SHOWN)}; none has GPUs", "note", advice)
    return Diagnosis("slurm partitions", "; ".join(with_gpus[:_SHOWN]) + (" and more" * (len(with_gpus) > _SHOWN)))


def _accounting(settings: dict[str, str]) -> Diagnosis:
    kind = settings.get("AccountingStorageType", "")
    if "slurmdbd" in kind:
        return Diagnosis("slurm accounting", kind)
    advice = "jobs that Slurm itself ended (out of memory) are told by their own records only"
    return Diagnosis("slurm accounting", "none", "note", advice)
