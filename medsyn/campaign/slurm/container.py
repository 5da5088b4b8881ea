"""The command that starts Python on a compute node: an interpreter, or a container around one.

The image needs no Slurm tool: the batch script outside does what concerns Slurm. Paths are the same inside.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from medsyn.campaign.records import Campaign
from medsyn.campaign.slurm.site import Container, Site

# What of the host's Python must not reach the one inside.
_CLEAN = {"PYTHONPATH": "", "PYTHONHOME": "", "PYTHONNOUSERSITE": "1"}


def python(site: Site, campaign: Campaign) -> str:
    """Shell text that starts Python for a task of the campaign."""
    if site.container is None:
        return shlex.quote(site.python or sys.executable)
    return shlex.join(command(site.container, binds(campaign)))


def command(container: Container, paths: list[str]) -> list[str]:
    """The words before Python's arguments: `apptainer exec ... IMAGE python3`."""
    words = [container.runtime, "exec"]
    if container.nv:
        words.append("--nv")
    for bind in [*paths, *container.binds]:
        words += ["--bind", bind]
    for name, value in {**_CLEAN, **container.environment}.items():
        words += ["--env", f"{name}={value}"]
    return [*words, *container.options, container.image, container.python]


def binds(campaign: Campaign) -> list[str]:
    """The folders that tasks read and write, at the same paths inside: the campaign's, its tables' and its weights'."""
    config = campaign.config
    folders = [campaign.directory.root, Path(config.data.table).parent, Path(str(config.data.ratings_file)).parent]
    if config.data.root:
        folders.append(Path(config.data.root))
    weights = Path(config.model_paths.stable_diffusion)
    if weights.is_absolute():
        folders.append(weights)
    kept: list[Path] = []
    for folder in sorted(set(folders)):  # a folder inside another one comes with it
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return [str(folder) for folder in kept]
