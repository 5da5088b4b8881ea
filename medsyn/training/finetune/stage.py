"""The stage `finetune`: fine-tune the UNet of one modality, or one for all of them, on their real images.

Only the step, the weights and the optimizer's state are saved; everything else is a function of the step. So an
interrupted run ends with the same bits as an uninterrupted one (on a CPU; a GPU's sums are not that exact).
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from medsyn import disk, time_use
from medsyn.config import FREE_OF_FINETUNE, GLOBAL_BATCH, AugmentSection, Config, FinetuneSection, flatten
from medsyn.data.images.latent_cache import TensorCache, caption_key, hash_files
from medsyn.data.tables.read import ImageRow
from medsyn.errors import CONFIGURATION, InputError, InputProblems
from medsyn.launcher import launched
from medsyn.models import model_folder, noise_schedule
from medsyn.models.scorers import PROVENANCE
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic, load_unet
from medsyn.models.weights import weights_fingerprint
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.checkpoint import keep_newest, load_exactly, newest_step, sha256_of
from medsyn.training.finetune import ranks
from medsyn.training.finetune.dataset import LatentDataset, prepare_dataset, training_rows
from medsyn.training.finetune.loop import train
from medsyn.training.finetune.parallel import Ranks, Team, meet
from medsyn.training.finetune.precision import training_dtype
from medsyn.training.finetune.publish import STEPS, discard_best, keep_first, publish
from medsyn.training.finetune.samples import SampleStrips
from medsyn.training.finetune.state import first_state
from medsyn.training.finetune.validation import MOST_IMAGES
from medsyn.training.run import FollowedRun, TrainingRun

logger = logging.getLogger(__name__)


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Fine-tune the UNet of `task.modality`, on one GPU or several (`finetune.gpus`); writes model/ and its records.

    A task without a modality is for all of them (`finetune.together`).

    Raises:
        InputProblems: rows or images that cannot be used, with `data.strict`.
        InputError: no images to train on, an option or GPUs that this machine lacks, or a model or checkpoint that was
            made with different settings.
        NoProgress: the loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; everything made so far is on disk.
        RuntimeError: one of several processes was killed.
    """
    if (place := launched()) is not None:
        return train_as(config, task, directory, control, meet(place))
    size = ranks.count(config)
    if size == 1:
        return _lead(config, task, directory, control, Team())
    ranks.run(train_as, size, config, task, directory, control)


def train_as(config: Config, task: Task, directory: CampaignDirectory, control: Control, team: Team) -> None:
    """Fine-tune as one rank of a team."""
    if isinstance(team, Ranks) and team.rank > 0:
        return _follow(control, team)
    if (account := time_use.current()) is not None:
        account.ranks = team.size
    try:
        _lead(config, task, directory, control, team)
    finally:
        team.dismiss()


def _lead(config: Config, task: Task, directory: CampaignDirectory, control: Control, team: Team) -> None:
    """Fine-tune as the first or the only rank: the one that writes model/, metrics.jsonl and summary.json."""
    cache, model = directory.root / "cache" / task.name, directory.finetuned_unet(task.name)
    disk.sweep_temporaries(cache)
    rows, held_out = training_rows(config, task.modality)
    section, validated = config.finetune, _validated_rows(config, task, held_out)
    hashes = hash_files((row.path for row in (*rows, *validated)), cache / "files.json")
    provenance = _provenance(config, rows, validated, hashes)
    training = TrainingRun(
        config,
        task,
        directory,
        control,
        provenance,
        section.checkpoints_total_limit,
        max_lost_minutes=section.max_lost_minutes,
    )
    if not _is_published(training, model, section):
        base, device = config.model_paths.stable_diffusion, team.device(config.device)
        if problems := model_folder.problems(base):
            raise InputProblems(problems)
        scheduler, dtype = noise_scheduler(config), training_dtype(config.device, device)
        state = first_state(load_unet(base, device, torch.float32), section, training.key, dtype)
        start = state.resume(training)  # a run that cannot resume is refused before hours of encoding
        if start > section.max_train_steps:
            reason = f"there is a checkpoint after {start} steps, so {section.max_train_steps} cannot be asked for"
            raise InputError(training.checkpoints, reason, key=STEPS)
        keep_first(state, start, training, config)

        @functools.cache
        def load_system() -> SyntheticSystem:
            return load_synthetic(base, device, with_unet=False, text_chunks=config.data.chunks)

        tensors = TensorCache(cache)
        dataset = prepare_dataset(config, rows, hashes, load_system, tensors, control)
        measured = None
        if validated:
            measured = prepare_dataset(_plain(config), validated, hashes, load_system, tensors, control)
        strips = None
        if measured is not None and section.validation_images is not None:
            weights, chunks = weights_fingerprint(base), config.data.chunks
            texts = {caption_key(row.text, weights, chunks): row.text for row in validated}
            strips = SampleStrips(config, training, measured, scheduler, texts)
        load_system.cache_clear()  # VAE and text encoder are no longer needed: training gets their memory
        found = {"step": start, "sha256": sha256_of(training.checkpoints, start) if start else None}
        told: dict[str, Any] = {"checkpoint": found, "dataset": dataset.keys()}
        told |= {"config": config.model_dump(mode="json"), "task": asdict(task)}
        told |= {"directory": str(directory.root), "dtype": str(dtype), "conditions": training.conditions}
        team.join(told, state.parameters, control)
        steps = section.max_train_steps
        with training:
            result = train(config, state, start, scheduler, dataset, training, team, measured, strips)
            summary = {"steps": steps, **result, **dataset.counts, "held_out": len(held_out)}
            disk.write_json(training.directory / "summary.json", summary)
            try:
                publish(state, config, training, model, result.get("best_step"))
            except InputError:  # the base is gone: once it is back, no step has to be made again
                training.save(steps, functools.partial(state.tensors, steps))
                raise
    discard_best(training)
    if section.can_be_lengthened and section.keep_last_checkpoint:
        keep_newest(training.checkpoints)
    else:
        shutil.rmtree(training.checkpoints, ignore_errors=True)


def _is_published(training: TrainingRun, model: Path, section: FinetuneSection) -> bool:
    """Whether the model is there, after all its steps; one that has had fewer is replaced when it has had the others.

    Raises:
        InputError: it was made from something else.
    """
    path = model / PROVENANCE
    made = disk.read_json(path).get(STEPS) if path.is_file() else None
    shorter = section.can_be_lengthened and isinstance(made, int) and made < section.max_train_steps
    if not shorter:
        return training.has_published(model, {STEPS: section.max_train_steps})
    training.has_published(model, {STEPS: made})
    begins = f"from step {newest}" if (newest := newest_step(training.checkpoints)) else "anew: there is no checkpoint"
    logger.warning("the model after %d steps is trained on to %d, %s", made, section.max_train_steps, begins)
    return False


def dismiss() -> None:
    """Tell the other processes of a launcher that there is nothing to train."""
    place = launched()
    assert place is not None
    meet(place).dismiss()


def follow(control: Control) -> None:
    """Train as another than the first process of a launcher; what, the first one tells."""
    place = launched()
    assert place is not None
    _follow(control, meet(place))


def _follow(control: Control, team: Ranks) -> None:
    """Train as one of the other ranks: from what the first one has prepared and loaded, and writing nothing."""
    told = team.hear()
    if told is None:
        return
    config, task = Config.model_validate(told["config"]), Task(**told["task"])
    directory = CampaignDirectory(Path(told["directory"]))
    base, training = config.model_paths.stable_diffusion, FollowedRun(config, task, directory, control)
    section = config.finetune.model_copy(update={"use_ema": False})  # the first keeps the average
    device = team.device(config.device)
    dtype = training_dtype(config.device, device)
    if str(dtype) != told["dtype"]:
        reason = f"rank {team.rank} would compute in {dtype} and rank 0 in {told['dtype']}: use cards of one model, or"
        raise InputError(CONFIGURATION, f"{reason} float32", key="device.precision")
    state = first_state(load_unet(base, device, torch.float32), section, training.key, dtype)
    start, sha256 = told["checkpoint"]["step"], told["checkpoint"]["sha256"]
    training.conditions = told["conditions"]
    if sha256 is not None:
        state.restore(load_exactly(training.checkpoints, start, sha256))
    dataset = LatentDataset(TensorCache(directory.root / "cache" / task.name), **told["dataset"])
    team.join({}, state.parameters, control)
    train(config, state, start, noise_scheduler(config), dataset, training, team)


def _validated_rows(config: Config, task: Task, held_out: list[ImageRow]) -> list[ImageRow]:
    """The held-out rows that the loss is measured on: all, or `MOST_IMAGES` of them by chance, always the same.

    Of several modalities as many of each as possible, in turns.

    Raises:
        InputError: it is to be measured, and there are fewer than two.
    """
    if config.finetune.validate_every is None:
        return []
    if len(held_out) < 2:
        found = f"{len(held_out)} of {task.modality or 'all modalities'}"
        reason = f"validation needs at least 2 held-out images for each model, and there are {found}: raise it, or set "
        reason += "finetune.validate_every: null"
        raise InputError(CONFIGURATION, reason, key="data.held_out_fraction")
    order = np.random.default_rng(seed(config.campaign.seed, "validation")).permutation(len(held_out)).tolist()
    chosen = _in_turns(order, held_out)[:MOST_IMAGES]
    return [held_out[place] for place in _in_turns(sorted(chosen), held_out)]


def _in_turns(places: Iterable[int], rows: Sequence[ImageRow]) -> list[int]:
    """Places of rows, one of each modality after the other and otherwise in their order."""
    seen: Counter[str] = Counter()
    turns = []
    for place in places:
        turns.append((seen[rows[place].modality], place))
        seen[rows[place].modality] += 1
    return [place for _, place in sorted(turns, key=lambda one: one[0])]


def _plain(config: Config) -> Config:
    """The configuration without versions and repeats of images: held-out images are measured once, as they are."""
    section = config.finetune.model_copy(update={"augment": AugmentSection(), "rare_captions": None})
    return config.model_copy(update={"finetune": section})


def noise_scheduler(config: Config) -> DDPMScheduler:
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


def _provenance(
    config: Config, rows: list[ImageRow], validated: list[ImageRow], hashes: dict[Path, str]
) -> dict[str, Any]:
    """What the weights depend on, under the configuration's key names; a resumed run must agree with all of it."""
    section = {name: value for name, value in config.finetune.model_dump().items() if name not in FREE_OF_FINETUNE}
    del section["together"]  # the rows say it
    if config.finetune.can_be_lengthened:
        del section["max_train_steps"]

    def contents(of: list[ImageRow]) -> str:
        return disk.fingerprint([[row.file, row.text, hashes[row.path]] for row in of])

    return {
        "campaign.seed": config.campaign.seed,
        "data.allow_synthetic": config.data.allow_synthetic,
        "data.resolution": config.data.resolution,
        "data.table": contents(rows),
        **({"data.text_chunks": config.data.chunks} if config.data.chunks > 1 else {}),
        **({"data.held_out": contents(validated)} if validated else {}),
        "model_paths.stable_diffusion": weights_fingerprint(config.model_paths.stable_diffusion),
        GLOBAL_BATCH: config.finetune.global_batch,
        **dict(flatten(section, "finetune.")),
    }
