"""What is wrong with a site profile on this cluster, before anything is queued. Asks Slurm, changes nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import medsyn
from medsyn.campaign.machine import CONFIGURATION
from medsyn.campaign.prompt_inputs import absolute
from medsyn.campaign.slurm import container, queue, site
from medsyn.campaign.slurm.queue import SlurmError
from medsyn.campaign.slurm.site import GATE, Container, Site
from medsyn.config import Config
from medsyn.doctor import packages
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.models import weights
from medsyn.stage import STAGES

OF_ONE_MACHINE = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/")
PROBE_SECONDS = 120.0  # a first start of a large image from a shared file system is slow
# What differs from the pins in its argument, as JSON; then the versions that jobs depend on.
_PROBE = """
import importlib.metadata, json, sys
import submitit, medsyn
def installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
pins = json.loads(sys.argv[1])
print(json.dumps({name: installed(name) for name in pins if installed(name).split("+")[0] != pins[name]}))
print(".".join(map(str, sys.version_info[:2])), submitit.__version__, medsyn.__version__)
"""


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
    found = [*_container(profile.container, source), *_unbindable(config)] if profile.container else []
    is_inside = profile.container is not None or any("--container" in word for word in profile.srun)  # Pyxis
    if profile.python is not None and not is_inside and not os.access(profile.python, os.X_OK):
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


def _container(wanted: Container, source: str) -> list[Problem]:
    found = []
    image = Path(wanted.image)
    if "://" not in wanted.image and not image.exists():
        found.append(Problem(source, f"there is no image {image}", key="container.image"))
    for bind in wanted.binds:
        if not Path(bind.partition(":")[0]).exists():
            found.append(Problem(source, f"there is no {bind.partition(':')[0]} to bind", key="container.binds"))
    if shutil.which(wanted.runtime) is None:
        reason = f"{wanted.runtime} is not on this machine, so the versions inside the image were not compared"
        found.append(Problem(source, reason, key="container.runtime", severity="warning"))
    elif not found:
        found += _versions(wanted, source)
    return found


def _unbindable(config: Config) -> list[Problem]:
    """Paths that the container runtime cannot be told: in its --bind, colons and commas separate."""
    paths = {
        "campaign.dir": str(config.campaign.path),
        "data.table": config.data.table,
        "data.root": config.data.root,
        "data.ratings_file": config.data.ratings_file,
        weights.KEY: config.model_paths.stable_diffusion,
    }
    reason = "has a colon or a comma, with which it cannot be bound into a container; choose a path without"
    return [
        Problem(CONFIGURATION, f"{path} {reason}", key=key)
        for key, path in paths.items()
        if path and (key == "campaign.dir" or Path(path).exists()) and set(str(absolute(path))) & set(":,")
    ]


def _versions(wanted: Container, source: str) -> list[Problem]:
    """Compare what runs inside the image with what queues it: submitit's pickles must be read there."""
    here = {
        "Python": ".".join(map(str, sys.version_info[:2])),
        "submitit": importlib.metadata.version("submitit"),
        "medsyn": medsyn.__version__,
    }
    pins = packages.pins()
    command = [*container.command(wanted, []), "-c", _PROBE, json.dumps(pins)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Problem(source, f"the image could not be entered: {error}", key="container.image")]
    inside = done.stdout.split()[-3:]
    if done.returncode or len(inside) != len(here):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        reason = f"Python, submitit and medsyn could not be asked for their versions inside the image: {last}"
        return [Problem(source, reason, key="container.image")]
    pairs = zip(here.items(), inside, strict=True)
    differ = [
        f"{name} is {theirs} inside the image and {ours} here" for (name, ours), theirs in pairs if ours != theirs
    ]
    found = [Problem(source, f"{text}; they must be the same", key="container.image") for text in differ]
    return found + _off_the_pins(done.stdout, pins, source)


def _off_the_pins(told: str, pins: Mapping[str, str], source: str) -> list[Problem]:
    """A warning if the image was made from other pins than this medsyn's."""
    lines = [line for line in told.splitlines() if line.startswith("{")]
    off = json.loads(lines[-1]) if lines else {}
    if not off:
        return []
    listed = ", ".join(f"{name} {version} ({pins[name]})" for name, version in sorted(off.items()))
    reason = f"packages inside the image are not at this medsyn's pins: {listed}; build it again"
    return [Problem(source, reason, key="container.image", severity="warning")]
