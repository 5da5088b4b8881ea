"""The command that starts Python on a compute node: an interpreter, or a container around one.

The image needs no Slurm tool: the batch script outside does what concerns Slurm. Paths are the same inside. Variables
of the host reach the inside unless the image sets them; those that must win over the image are passed by `--env`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from medsyn import disk
from medsyn.campaign.slurm.site import Container, Resources, Site
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.generation.write.provenance import IMAGE_VARIABLE
from medsyn.models import weights

# What of the host's Python must not reach the one inside; a safe path keeps out the working directory, too, which
# Apptainer mounts and `python -m` would search first.
_CLEAN = {"PYTHONPATH": "", "PYTHONHOME": "", "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
_HASH_OF_IMAGE = "image.json"
PYXIS_IMAGE = "--container-image"


def python(site: Site, campaign: Campaign, wanted: Resources, environment: Mapping[str, object]) -> str:
    """Shell text that starts Python for a task of the campaign.

    Args:
        site: the cluster.
        campaign: whose directories are bound.
        wanted: what the task's job requests; the driver is bound if that includes a GPU.
        environment: `task_environment`.
    """
    if site.container is None:
        return shlex.quote(site.python or sys.executable)
    threads = {"OMP_NUM_THREADS": campaign.config.device.cpu_threads}
    return shlex.join(
        command(site.container, binds(campaign, site), {**threads, **_caches(), **environment}, asks_for_gpu(wanted))
    )


def command(
    container: Container, paths: Sequence[str], environment: Mapping[str, object], gpu: bool = False
) -> list[str]:
    """The words before Python's arguments: `apptainer exec ... IMAGE python3`.

    Args:
        container: the site's.
        paths: directories to bind besides the container's own binds.
        environment: set inside, unless the container's own environment has another value.
        gpu: bind the NVIDIA driver unless the profile's `nv` decides.
    """
    words = [container.runtime, "exec"]
    if container.nv or (container.nv is None and gpu):
        words.append("--nv")
    for bind in [*paths, *container.binds]:
        words += ["--bind", bind]
    for name, value in {**environment, **container.environment}.items():
        words += ["--env", f"{name}={value}"]
    return [*words, *container.options, container.image, container.python]


def asks_for_gpu(wanted: Resources) -> bool:
    """Whether a job with these options is given a GPU."""
    options = [f"{name} {value}" for name, value in wanted.sbatch.items()]
    parts = (wanted.gres or "").startswith(("shard", "mps"))  # of a GPU
    return parts or any("gpu" in text for text in (wanted.gres or "", *options, *wanted.srun))


def _caches() -> dict[str, str]:
    """The submitter's variables for the cache in which weights were found here."""
    return {name: os.environ[name] for name in weights.CACHE_VARIABLES if os.environ.get(name)}


def binds(campaign: Campaign, site: Site) -> list[str]:
    """The directories that tasks read and write, at the same paths inside.

    The campaign's, its tables', its weights', and HF_HOME and HF_HUB_CACHE where they are set and exist.
    """
    config = campaign.config
    folders = {campaign.directory.root, Path(config.data.table).parent, Path(str(config.data.ratings_file)).parent}
    if config.data.pairs_file:
        folders.add(Path(config.data.pairs_file).parent)
    if config.data.root:
        folders.add(Path(config.data.root))
    folders |= {Path(folder) for folder in config.data.linked_roots}
    folders |= weights.folders(config.model_paths.stable_diffusion)
    inside = site.container.environment if site.container else {}
    environment = {**_caches(), **site.environment, **inside}
    caches = [Path(str(environment[name])) for name in weights.CACHE_VARIABLES if name in environment]
    folders |= {cache for cache in caches if cache.is_absolute() and cache.is_dir()}
    kept: list[Path] = []
    for folder in sorted(folders):  # a folder inside another one comes with it
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return [str(folder) for folder in kept]


def image_of(site: Site) -> str | None:
    """The image that tasks run in, as the profile names it: the container's, or the one Pyxis is given."""
    if site.container is not None:
        return site.container.image
    return next(iter(srun_values(site.srun, PYXIS_IMAGE)), None)


def srun_values(words: Sequence[str], option: str) -> list[str]:
    """The values of an option in srun's arguments, as `--option=value` or as two words."""
    found = [after for word, after in pairwise(words) if word == option]
    return [*found, *(word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}="))]


def task_environment(site: Site) -> dict[str, object]:
    """Variables of every task: the site's, and in an image those that keep the host's Python out."""
    return {**(_CLEAN if image_of(site) else {}), **site.environment}


def export_image(site: Site, campaign: Campaign) -> list[str]:
    """Shell lines that export the image's hash to a task; a file that has changed by then is hashed again."""
    image = image_of(site)
    if image is None:
        return []
    lines = [f"export {IMAGE_VARIABLE}={shlex.quote(_identity(image, campaign.directory.slurm(_HASH_OF_IMAGE)))}"]
    if Path(image).is_file():
        status, path = Path(image).stat(), shlex.quote(image)
        then = f"{status.st_size} {status.st_mtime_ns // 10**9}"
        anew = f"export {IMAGE_VARIABLE}=sha256:$(sha256sum {path} | cut -c-64)"
        lines.append(f'[ "$(stat -Lc "%s %Y" {path})" = "{then}" ] || {anew}')
    return lines


def _identity(image: str, cache: Path) -> str:
    """`sha256:...` of an image file, else the image as it is named; hashed again only if size or time changed."""
    path = Path(image)
    if not path.is_file():
        return image
    status = path.stat()
    key = {"image": os.path.realpath(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    try:
        known = disk.read_json(cache)
    except (FileNotFoundError, ValueError):
        known = {}
    if not isinstance(known, dict) or {**known, **key} != known or "sha256" not in known:
        known = key | {"sha256": disk.sha256_file(path)}
        disk.make_directory(cache.parent)
        disk.write_json(cache, known)
    return f"sha256:{known['sha256']}"
