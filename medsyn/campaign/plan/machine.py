"""What a campaign needs of the machine: a directory of its own, pretrained weights, optional packages, a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from medsyn.config import Config, ModelPathsSection
from medsyn.disk import absolute
from medsyn.errors import CONFIGURATION, Problem
from medsyn.models import lora_targets, model_folder, noise_schedule, single_file
from medsyn.models.visible_gpus import visible_gpus
from medsyn.models.weights import locate
from medsyn.stage import CampaignDirectory
from medsyn.text import counted


def check(config: Config, given: ModelPathsSection) -> list[Problem]:
    """Everything that is missing or in the way, of a resolved configuration, and of the model as it was given."""
    unusable = _check_model(config, given) or noise_schedule.problems(config)
    too_few = [] if shutil.which("sbatch") else _check_gpus(config)
    return _check_directory(config) + unusable + _check_chunks(config) + _check_packages(config) + too_few


def _check_model(config: Config, given: ModelPathsSection) -> list[Problem]:
    """What keeps the model from being used, or adapters from being put on its UNet."""
    base, adapters = config.model_paths.stable_diffusion, {"finetune.lora": config.finetune.lora}
    if config.align.enabled:
        adapters["align.lora"] = config.align.lora
    if not single_file.is_one(given.stable_diffusion):
        found = [one for key, lora in adapters.items() for one in lora_targets.problems(base, lora, key)]
        return model_folder.problems(base) or found
    found = single_file.problems(absolute(given.stable_diffusion), config.model_paths.components)
    wanted = {key: lora for key, lora in adapters.items() if lora.rank is not None}
    if found or not wanted:
        return found
    shapes = single_file.unet_shapes(Path(str(config.model_paths.components)))
    return [one for key, lora in wanted.items() for one in lora_targets.misfits(shapes, lora, key)]


def has_gpu(config: Config, here: bool = False) -> bool:
    """Whether the tasks will find a GPU.

    Args:
        config: the campaign's.
        here: whether they run on this machine; in a queue's compute nodes a GPU cannot be seen, and is assumed.
    """
    return config.device.use_cuda and (is_queued(here) or bool(visible_gpus()))


def is_queued(here: bool = False) -> bool:
    """Whether the tasks will be jobs in a queue; `here`: they run on this machine although it has one."""
    return not here and shutil.which("sbatch") is not None


def expects_gpu(config: Config, here: bool = False) -> bool:
    """Whether estimates are made for a GPU: there is one, or the configuration says how much memory it has."""
    return config.device.use_cuda and (config.cluster.gpu_memory_gib is not None or has_gpu(config, here))


def check_here(config: Config) -> list[Problem]:
    """A warning if estimates are for a card that a run on this machine would not have; an error if it has too few."""
    found = _check_gpus(config)
    if found or not expects_gpu(config, here=True) or has_gpu(config, here=True):
        return found
    reason = (
        f"no NVIDIA GPU is visible here, and estimates are for a card of {config.cluster.gpu_memory_gib:g} GiB; to run "
        "on this machine's processor, set device.use_cuda=false"
    )
    return [Problem(CONFIGURATION, reason, key="cluster.gpu_memory_gib", severity="warning")]


def _check_directory(config: Config) -> list[Problem]:
    path = config.campaign.path
    try:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            reason = f"{existing} is not a writable directory"
        elif existing == path and _is_foreign(CampaignDirectory(path)):
            reason = f"{path} holds files but no campaign: choose another campaign.name or campaign.dir"
        else:
            return []
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
    return [Problem(CONFIGURATION, reason, key="campaign.dir")]


def _is_foreign(directory: CampaignDirectory) -> bool:
    """Whether it holds something that no killed submit leaves: a submit makes its lock, then claims the directory."""
    if directory.campaign_file.is_file():
        return False
    return any(
        not (path == directory.ledger and path.stat().st_size == 0)
        and path.name != f"{directory.ledger.name}.lock"
        and not (path.name.startswith(".") and ".tmp-" in path.name)
        for path in directory.root.iterdir()
    )


def _check_packages(config: Config) -> list[Problem]:
    """Switches that need an optional package, or a GPU that a run on this machine would not have."""
    wanted = {"enable_xformers": "xformers", "use_8bit_adam": "bitsandbytes"}
    on = {key: package for key, package in wanted.items() if getattr(config.finetune, key)}
    needed = [(f"finetune.{key}", package, "false") for key, package in on.items()]
    if config.training.report_to is not None:
        needed.append(("training.report_to", config.training.report_to, "null"))
    queued, problems = shutil.which("sbatch") is not None, []
    for key, package, off in needed:
        if importlib.util.find_spec(package) is None:
            where = "make sure it is on the compute nodes, or in the container"
            reason = f"{package} is not installed here: {where if queued else f'install it, or set this to {off}'}"
            problems.append(Problem(CONFIGURATION, reason, key=key, severity="warning" if queued else "error"))
    with_gpu = [f"finetune.{key}" for key in on] + ["device.compile"] * config.device.compile
    if with_gpu and not has_gpu(config):
        why = "no NVIDIA GPU is visible" if config.device.use_cuda else "device.use_cuda is false"
        problems += [Problem(CONFIGURATION, f"it needs a GPU, but {why}: set it to false", key=key) for key in with_gpu]
    return problems


def _check_chunks(config: Config) -> list[Problem]:
    """A warning if the base is a model that medsyn has fine-tuned on more or less of each text."""
    base = locate(config.model_paths.described_by)
    trained = None if base is None else model_folder.trained_chunks(base)
    if trained in (None, config.data.chunks):
        return []
    reason = f"the model of model_paths.stable_diffusion was fine-tuned with {trained if trained != 1 else 'null'}"
    return [Problem(CONFIGURATION, reason, key="data.text_chunks", severity="warning")]


def _check_gpus(config: Config) -> list[Problem]:
    """An error if a fine-tuning task is to have more GPUs than this machine has."""
    wanted = config.finetune.gpus
    if wanted == "auto" or wanted == 1 or not config.device.use_cuda:
        return []
    there = len(visible_gpus())
    if there >= wanted:
        return []
    seen = counted(there, "NVIDIA GPU") if there else "no NVIDIA GPU"
    reason = f"it is {wanted}, and {seen} can be seen here: use {there or 1}, or auto"
    if not there:
        reason += "; with device.use_cuda=false that many processes share the work, to try it"
    return [Problem(CONFIGURATION, reason, key="finetune.gpus")]
