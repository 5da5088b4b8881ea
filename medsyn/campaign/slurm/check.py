"""Check a site profile against this cluster before anything is queued. Asks Slurm, changes nothing.

Check the image that tasks will run in, too: starts it once, changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import medsyn
from medsyn.campaign import notify
from medsyn.campaign.slurm import container, gpus, queue, shell_variables, site
from medsyn.campaign.slurm.container import image_of
from medsyn.campaign.slurm.site import GATE, Container, Site
from medsyn.config import Config
from medsyn.disk import absolute
from medsyn.doctor import packages
from medsyn.errors import CONFIGURATION, InputError, InputProblems, Problem, SlurmError
from medsyn.models import weights
from medsyn.stage import STAGES

OF_ONE_MACHINE = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/")

PROBE_SECONDS = 120.0  # a first start of a large image from a shared file system is slow
_CANARY = "SLURM_MEDSYN"  # a variable as Slurm's are, to see that they reach the inside
_MOUNTS = "--container-mounts"  # Pyxis: SOURCE:TARGET[:FLAGS], and commas between several
_HOME_STAYS_OUT = "--no-container-mount-home"
# Prints, as the last line, the versions that jobs depend on, what is not at the pins in its argument, and the canary.
_PROBE = f"""
import importlib.metadata, json, os, sys
import medsyn
def installed(name):
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None
pins = json.loads(sys.argv[1])
print(json.dumps({{
    "versions": [".".join(map(str, sys.version_info[:2])), medsyn.__version__],
    "off": {{name: installed(name) for name in pins if installed(name) != pins[name]}},
    "canary": "{_CANARY}" in os.environ,
}}))
"""


def read_site(config: Config, asks_slurm: bool = True) -> tuple[Site | None, list[Problem]]:
    """The profile that `cluster.site` names, with the GPUs that fine-tuning needs, and everything wrong with it.

    What can be seen from here, that is.

    Args:
        config: the campaign's.
        asks_slurm: look up partitions and time limits; otherwise only the profile's own files are checked.
    """
    try:
        profile = site.load(config.cluster.site)
    except (InputError, InputProblems) as error:
        return None, error.problems
    return gpus.with_gpus(profile, config), problems(profile, config, asks_slurm)


def problems(profile: Site, config: Config, asks_slurm: bool = True) -> list[Problem]:
    """Everything that is wrong with a site profile for a campaign; arguments as for `read_site`."""
    source = config.cluster.site or "Slurm"
    found = container_problems(profile, config, source)
    if profile.python is not None and image_of(profile) is None and not os.access(profile.python, os.X_OK):
        reason = f"{profile.python} is not executable here; it must be on a file system that all nodes share"
        found.append(Problem(source, reason, key="python"))
    if image_of(profile) is None:  # a gate tells, and in a container that has the container's commands
        found += notify.problems(config)
    found += [*_directory(config), *_syntax(profile, source), *gpus.problems(profile, config, source)]
    known = queue.settings_if_any() if asks_slurm else {}
    found += shell_variables.problems(profile, config.cluster.site, known.get("ClusterName"))
    return found + (_limits(profile, source) if asks_slurm else [])


def _syntax(profile: Site, source: str) -> Iterator[Problem]:
    """What bash would not read of `setup`, which it runs line by line in every job."""
    if not profile.setup or shutil.which("bash") is None:
        return
    text = "\n".join(profile.setup)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0].removeprefix("bash: ")
        yield Problem(source, f"it is not a shell script: {said}", key="setup")


def _directory(config: Config) -> list[Problem]:
    """What is wrong with the path of the campaign's directory, which all nodes must see under one name."""
    path = str(config.campaign.path)
    if set(path) & set("%\\\n"):
        reason = f"{path!r}: Slurm interprets % and \\ in paths of logs; choose a path without them"
        return [Problem(CONFIGURATION, reason, key="campaign.dir")]
    if path.startswith(OF_ONE_MACHINE):
        reason = f"{path} is usually on one machine only; all nodes must see it, so choose a shared file system"
        return [Problem(CONFIGURATION, reason, key="campaign.dir", severity="warning")]
    return []


def _limits(profile: Site, source: str) -> list[Problem]:
    try:
        allowed = int(queue.cluster_settings().get("MaxArraySize", profile.max_array_size or 0))
    except SlurmError as error:
        return [Problem("Slurm", f"it cannot be queried: {error}")]
    found = _partitions(profile, source)
    if profile.max_array_size and profile.max_array_size > allowed:
        reason = f"{profile.max_array_size} exceeds the cluster's MaxArraySize ({allowed})"
        found.append(Problem(source, reason, key="max_array_size"))
    return found


def _partitions(profile: Site, source: str) -> list[Problem]:
    try:
        partitions = _known_partitions()
    except SlurmError as error:
        return [Problem("Slurm", f"it cannot be queried: {error}")]
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
                reason = f"there is no partition {name}; the cluster has {', '.join(sorted(partitions))}"
                found[Problem(source, reason, key=f"{place}partition")] = None
                continue
            limit = partitions[name]["limit"]
            if wanted.minutes is not None and limit is not None and wanted.minutes > int(limit):
                reason = f"{wanted.minutes} minutes exceed the limit of partition {name} ({limit})"
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


def container_problems(profile: Site, config: Config, source: str) -> list[Problem]:
    """Everything wrong with the profile's image and its binds; none where tasks do not run in an image.

    Args:
        profile: the cluster.
        config: the campaign's.
        source: the profile's name in messages.
    """
    if profile.container is not None:
        found = [*_missing(profile.container, source), *_unbindable(config)]
        return found or _inside(profile.container, profile, source)
    return list(_pyxis(profile, config, source))


def _missing(wanted: Container, source: str) -> Iterator[Problem]:
    if "://" not in wanted.image and (reason := _cannot_be_read(wanted.image)):
        yield Problem(source, f"the image {wanted.image} {reason}", key="container.image")
    for bind in wanted.binds:
        path = bind.partition(":")[0]
        if reason := _cannot_be_read(path):
            yield Problem(source, f"the bind source {path} {reason}", key="container.binds")


def _cannot_be_read(path: str) -> str | None:
    """Why, or None if it can."""
    try:
        if not Path(path).exists():
            return "does not exist"
    except OSError as error:  # below a folder that cannot be entered, too long a name
        return f"cannot be read: {error.strerror}"
    return None if os.access(path, os.R_OK) else "cannot be read: Permission denied"


def _unbindable(config: Config) -> list[Problem]:
    """Paths that the container runtime cannot bind: colons and commas are separators in its --bind."""
    paths = [
        ("campaign.dir", str(config.campaign.path)),
        ("data.table", config.data.table),
        ("data.root", config.data.root),
        *(("data.linked_roots", folder) for folder in config.data.linked_roots),
        ("data.ratings_file", config.data.ratings_file),
        ("data.pairs_file", config.data.pairs_file),
        (weights.KEY, config.model_paths.stable_diffusion),
    ]
    reason = "contains a colon or a comma, so it cannot be bound into a container; choose a path without them"
    return [
        Problem(CONFIGURATION, f"{path} {reason}", key=key)
        for key, path in paths
        if path and (key == "campaign.dir" or Path(path).exists()) and set(str(absolute(path))) & set(":,")
    ]


def _inside(wanted: Container, profile: Site, source: str) -> list[Problem]:
    """What is wrong inside the image; a warning if it cannot be started from here."""
    if shutil.which(wanted.runtime) is None:
        reason = f"{wanted.runtime} is not installed here, so the versions inside the image were not compared"
        return [Problem(source, reason, key="container.runtime", severity="warning")]
    pins = packages.pins()
    command = [*container.command(wanted, [], container.task_environment(profile)), "-c", _PROBE, json.dumps(pins)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=PROBE_SECONDS,
            env={**os.environ, _CANARY: "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Problem(source, f"the image could not be started: {error}", key="container.image")]
    answer = _answer(done.stdout)
    if done.returncode or answer is None:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        reason = f"the versions of Python and medsyn inside the image could not be read: {last}"
        return [Problem(source, reason, key="container.image")]
    found = [*_versions(answer["versions"], source), *_off_the_pins(answer["off"], pins, source)]
    if not answer["canary"]:
        reason = "Slurm's variables do not reach the container: remove --cleanenv, --containall and APPTAINER_CLEANENV"
        found.append(Problem(source, reason, key="container.options"))
    return found


def _answer(output: str) -> dict[str, Any] | None:
    """What the probe printed; the image may have printed something before it."""
    try:
        answer = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _versions(inside: list[str], source: str) -> Iterator[Problem]:
    """Compare versions inside the image with those out here."""
    here = {
        "Python": ".".join(map(str, sys.version_info[:2])),
        "medsyn": medsyn.__version__,
    }
    for (name, ours), theirs in zip(here.items(), inside, strict=True):
        if ours != theirs:
            reason = f"{name} is {theirs} inside the image and {ours} here; they must be the same"
            yield Problem(source, reason, key="container.image")


def _off_the_pins(off: Mapping[str, str | None], pins: Mapping[str, str], source: str) -> Iterator[Problem]:
    """Packages that the image lacks, and a warning about those that differ from this medsyn's pins."""
    if absent := sorted(name for name, version in off.items() if version is None):
        reason = f"the image lacks {', '.join(absent)}; rebuild it"
        yield Problem(source, reason, key="container.image")
    if other := [f"{name} {version} ({pins[name]})" for name, version in sorted(off.items()) if version is not None]:
        reason = f"packages inside the image differ from this medsyn's pins: {', '.join(other)}; rebuild it"
        yield Problem(source, reason, key="container.image", severity="warning")


def _pyxis(profile: Site, config: Config, source: str) -> Iterator[Problem]:
    """What can be checked of Pyxis' options from here, where its image cannot be started."""
    image = container.image_of(profile)
    if image is None:
        return
    if image.startswith(("/", ".")) and (reason := _cannot_be_read(image)):
        yield Problem(source, f"the image {image} {reason}", key="srun")
    mounts = ",".join(container.srun_values(profile.srun, _MOUNTS)).split(",")
    seen = [Path(mount.split(":")[0]) for mount in mounts if mount]
    if _HOME_STAYS_OUT not in profile.srun:
        seen.append(Path.home())
    path = config.campaign.path
    if not any(path.is_relative_to(folder) for folder in seen):
        reason = f"{path} is in none of {_MOUNTS}; unless the site mounts it, tasks will not find the campaign"
        yield Problem(source, reason, key="srun", severity="warning")
