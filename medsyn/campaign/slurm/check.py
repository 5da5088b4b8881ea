"""What is wrong with a site profile on this cluster, before anything is queued. Asks Slurm, changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping

from medsyn.campaign.machine import CONFIGURATION
from medsyn.campaign.slurm import check_container, queue, site
from medsyn.campaign.slurm.container import image_of
from medsyn.campaign.slurm.site import GATE, Site
from medsyn.config import Config
from medsyn.errors import InputError, InputProblems, Problem, SlurmError
from medsyn.stage import STAGES

OF_ONE_MACHINE = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/")


def problems(config: Config, asks_slurm: bool = True) -> list[Problem]:
    """Everything that is wrong with the campaign's site profile, as far as it can be told from here.

    Args:
        config: its `cluster.site` names the profile.
        asks_slurm: look up partitions and time limits; without, only the profile's own files are looked at.
    """
    try:
        profile = site.load(config.cluster.site)
    except (InputError, InputProblems) as error:
        return error.problems
    source = config.cluster.site or "Slurm"
    found = check_container.problems(profile, config, source)
    if profile.python is not None and image_of(profile) is None and not os.access(profile.python, os.X_OK):
        reason = f"{profile.python} cannot be run here; it must be on a file system that all nodes share"
        found.append(Problem(source, reason, key="python"))
    found += _directory(config)
    return found + (_limits(profile, source) if asks_slurm else [])


def _directory(config: Config) -> list[Problem]:
    """What is wrong with the place of the campaign's directory, which all nodes must see under one name."""
    path = str(config.campaign.path)
    if set(path) & set("%\\\n"):
        reason = f"{path!r}: Slurm reads % and \\ in paths of logs as its own; choose a path without them"
        return [Problem(CONFIGURATION, reason, key="campaign.dir")]
    if path.startswith(OF_ONE_MACHINE):
        reason = f"{path} is usually on one machine only; all nodes must see it, so choose a shared file system"
        return [Problem(CONFIGURATION, reason, key="campaign.dir", severity="warning")]
    return []


def _limits(profile: Site, source: str) -> list[Problem]:
    try:
        allowed = int(queue.cluster_settings().get("MaxArraySize", profile.max_array_size or 0))
    except SlurmError as error:
        return [Problem("Slurm", f"it cannot be asked: {error}")]
    found = _partitions(profile, source)
    if profile.max_array_size and profile.max_array_size > allowed:
        reason = f"{profile.max_array_size} is more than the cluster's MaxArraySize ({allowed})"
        found.append(Problem(source, reason, key="max_array_size"))
    return found


def _partitions(profile: Site, source: str) -> list[Problem]:
    try:
        partitions = _known_partitions()
    except SlurmError as error:
        return [Problem("Slurm", f"it cannot be asked: {error}")]
    found: dict[Problem, None] = {}
    for stage in (*STAGES, GATE):
        wanted = profile.resources(stage)
        own = stage in profile.stages and "partition" in profile.stages[stage].model_fields_set
        place = f"stages.{stage}." if own else ""
        names = wanted.partition.split(",") if wanted.partition else [n for n, f in partitions.items() if f["default"]]
        if not names:
            reason = f"the cluster has no default partition; it has {', '.join(sorted(partitions))}"
            found[Problem(source, reason, key="partition")] = None
        for name in names:
            if name not in partitions:
                reason = f"there is no partition {name}; there are {', '.join(sorted(partitions))}"
                found[Problem(source, reason, key=f"{place}partition")] = None
                continue
            limit = partitions[name]["limit"]
            if wanted.minutes is not None and limit is not None and wanted.minutes > int(limit):
                reason = f"{wanted.minutes} minutes are more than partition {name} allows ({limit})"
                found[Problem(source, reason, key=f"{place if stage in profile.stages else ''}time")] = None
    return list(found)


def _known_partitions() -> dict[str, Mapping[str, int | bool | None]]:
    """Every partition of the cluster: whether it is the default, and its time limit in minutes (None: no limit)."""
    known: dict[str, Mapping[str, int | bool | None]] = {}
    for line in queue.call("sinfo", "-h", "-a", "-o", "%P|%l").splitlines():
        name, limit = line.strip().split("|")
        known[name.rstrip("*")] = {
            "default": name.endswith("*"),
            "limit": None if limit in ("infinite", "n/a") else site.minutes(limit),
        }
    return known
