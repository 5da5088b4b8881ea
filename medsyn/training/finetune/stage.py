"""The stage `finetune`: fine-tune the UNet of one modality on its real images.

Only the step, the weights and the optimizer's state are saved; everything else is a function of the step. So an
interrupted run ends with the same bits as an uninterrupted one (on a CPU; a GPU's sums are not that exact).
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from medsyn import disk
from medsyn.config import FREE_OF_FINETUNE, AugmentSection, Config, flatten
from medsyn.data.images.latent_cache import TensorCache, hash_files
from medsyn.data.tables.read import ImageRow
from medsyn.errors import InputError, InputProblems
from medsyn.models import model_folder, noise_schedule
from medsyn.models.device import choose_device
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic, load_unet
from medsyn.models.weights import weights_fingerprint
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.finetune.dataset import prepare_dataset, training_rows
from medsyn.training.finetune.loop import train
from medsyn.training.finetune.precision import training_dtype
from medsyn.training.finetune.publish import discard_best, publish
from medsyn.training.finetune.state import first_state
from medsyn.training.finetune.validation import MOST_IMAGES
from medsyn.training.run import TrainingRun


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Fine-tune the UNet of `task.modality`; writes model/, metrics.jsonl and summary.json.

    Raises:
        InputProblems: rows or images that cannot be used, with `data.strict`.
        InputError: no images to train on, an option this machine lacks, or a model or checkpoint that was made with
            different settings.
        NoProgress: the loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; everything made so far is on disk.
    """
    assert task.modality is not None
    cache, model = directory.root / "cache" / task.name, directory.finetuned_unet(task.modality)
    disk.sweep_temporaries(cache)
    rows, held_out = training_rows(config, task.modality)
    hashes = hash_files((row.path for row in (*rows, *held_out)), cache / "files.json")
    provenance = _provenance(config, rows, hashes)
    training = TrainingRun(config, task, directory, control, provenance, config.finetune.checkpoints_total_limit)
    if not training.has_published(model):
        base, device = config.model_paths.stable_diffusion, choose_device(config.device).device
        if problems := model_folder.problems(base):
            raise InputProblems(problems)
        scheduler = _scheduler(config)
        dtype = training_dtype(config.device, device)
        state = first_state(load_unet(base, device, torch.float32), config.finetune, training.key, dtype)
        start = state.resume(training)  # a run that cannot resume is refused before hours of encoding

        @functools.cache
        def load_system() -> SyntheticSystem:
            return load_synthetic(base, device, with_unet=False)

        tensors = TensorCache(cache)
        dataset = prepare_dataset(config, rows, hashes, load_system, tensors, control)
        validated = None
        if config.finetune.validate_every is not None:
            chosen = _validated_rows(config, held_out)
            validated = prepare_dataset(_plain(config), chosen, hashes, load_system, tensors, control)
        load_system.cache_clear()  # VAE and text encoder are no longer needed: training gets their memory
        found = train(config, state, start, scheduler, dataset, training, validated)
        summary = {"steps": config.finetune.max_train_steps, **found, **dataset.counts, "held_out": len(held_out)}
        disk.write_json(training.directory / "summary.json", summary)
        publish(state, config, training, model, found.get("best_step"))
    discard_best(training)
    shutil.rmtree(training.checkpoints, ignore_errors=True)


def _validated_rows(config: Config, held_out: list[ImageRow]) -> list[ImageRow]:
    """The held-out rows that the loss is measured on: all, or `MOST_IMAGES` of them by chance, always the same.

    Raises:
        InputError: there are fewer than two.
    """
    if len(held_out) < 2:
        reason = f"validation needs at least 2 held-out images, and there are {len(held_out)}: raise it, or set "
        raise InputError("configuration", reason + "finetune.validate_every: null", key="data.held_out_fraction")
    order = np.random.default_rng(seed(config.campaign.seed, "validation")).permutation(len(held_out))
    return [held_out[place] for place in sorted(order[:MOST_IMAGES])]


def _plain(config: Config) -> Config:
    """The configuration without versions of images: held-out images are measured as they are."""
    section = config.finetune.model_copy(update={"augment": AugmentSection()})
    return config.model_copy(update={"finetune": section})


def _scheduler(config: Config) -> DDPMScheduler:
    """The noise schedule that is trained with.

    Raises:
        InputError: the UNet predicts what cannot be fine-tuned.
        InputProblems: it cannot be trained as configured.
    """
    base = config.model_paths.stable_diffusion
    schedule = model_folder.scheduler_config(base)
    predicted = schedule.get("prediction_type", "epsilon")
    if predicted not in ("epsilon", "v_prediction"):
        reason = f"the model predicts '{predicted}'; only epsilon and v_prediction can be fine-tuned"
        raise InputError(base, reason, key="model_paths.stable_diffusion")
    if problems := noise_schedule.wrong_target(schedule, config.finetune):
        raise InputProblems(problems)
    return DDPMScheduler.from_config(noise_schedule.trained_with(schedule, config.finetune))


def _provenance(config: Config, rows: list[ImageRow], hashes: dict[Path, str]) -> dict[str, Any]:
    """What the weights depend on, under the configuration's key names; a resumed run must agree with all of it."""
    section = {name: value for name, value in config.finetune.model_dump().items() if name not in FREE_OF_FINETUNE}
    return {
        "campaign.seed": config.campaign.seed,
        "data.allow_synthetic": config.data.allow_synthetic,
        "data.resolution": config.data.resolution,
        "data.table": disk.fingerprint([[row.file, row.text, hashes[row.path]] for row in rows]),
        "model_paths.stable_diffusion": weights_fingerprint(config.model_paths.stable_diffusion),
        "world_size": 1,
        **dict(flatten(section, "finetune.")),
    }
