"""What other programs load: the fine-tuned model as a pipeline directory, and the UNets kept on the way."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from medsyn import disk, time_use
from medsyn.config import Config, FinetuneSection
from medsyn.errors import InputError
from medsyn.models import model_folder, noise_schedule
from medsyn.models.pipeline_folder import add_parts, write_index
from medsyn.models.scorers import PROVENANCE
from medsyn.models.weights import KEY, locate, weights_fingerprint
from medsyn.stage import KEPT
from medsyn.training.background_writer import Job, Tensors
from medsyn.training.checkpoint import discard, saved_steps
from medsyn.training.finetune.state import TrainState
from medsyn.training.finetune.validation import best_step
from medsyn.training.run import CONDITIONS, TrainingRun

STEPS = "finetune.max_train_steps"
_BEST = "best-"  # folders of a run, each with the UNet that had the lowest held-out loss until then


def is_kept(section: FinetuneSection, step: int) -> bool:
    """Whether the UNet after `step` steps is kept beside that of the last, which is the model."""
    every = section.keep_every
    return every is not None and step % every == 0 and 0 < step < section.max_train_steps


def keep_first(state: TrainState, step: int, training: TrainingRun, config: Config) -> None:
    """Keep the UNet that a run goes on from, where that was not due until now: its step was the last, say."""
    if is_kept(config.finetune, step) and not (training.directory / f"{KEPT}{step}").exists():
        job = keep_unet(state, step, training, config)
        job.write(job.tensors)


def keep_unet(state: TrainState, step: int, training: TrainingRun, config: Config) -> Job:
    """Writes the UNet as it is now, after `step` steps, in the place of one that an interrupted attempt has written."""
    state.require_finite(step)
    path, conditions = training.directory / f"{KEPT}{step}", list(training.conditions)

    def write(trained: Tensors) -> None:
        if path.exists():
            discard(path)
        with disk.atomic_directory(path) as temporary:
            state.save_unet(temporary, trained)
            _write_schedule(config, temporary)
            disk.write_json(temporary / PROVENANCE, training.provenance | {"step": step, CONDITIONS: conditions})

    return Job(state.result(step), write)


def keep_best(state: TrainState, step: int, training: TrainingRun, losses: Mapping[int, float]) -> list[Job]:
    """Writes the UNet as it is now, after `step` steps, until the end of the run, if its loss is the lowest so far.

    An earlier best goes only if no checkpoint is left from which a run that goes on there would need it.
    """
    if best_step(losses, step) != step:
        return []
    path = best_folder(training, step)

    def write(trained: Tensors) -> None:
        if path.exists():
            discard(path)
        with disk.atomic_directory(path) as temporary:
            state.save_unet(temporary, trained)
        needed = {step, *(best_step(losses, saved) for saved in saved_steps(training.checkpoints))}
        for other in training.directory.glob(f"{_BEST}*"):
            if other not in {best_folder(training, best) for best in needed if best is not None}:
                discard(other)

    return [Job(state.result(step), write)]


def discard_best(training: TrainingRun) -> None:
    """Remove what `keep_best` kept, once the model is published."""
    for path in training.directory.glob(f"{_BEST}*"):
        discard(path)


def best_folder(training: TrainingRun, step: int) -> Path:
    """Where `keep_best` keeps the UNet after `step` steps."""
    return training.directory / f"{_BEST}{step}"


@time_use.of(time_use.WRITING)
def publish(state: TrainState, config: Config, training: TrainingRun, model: Path, best: int | None = None) -> None:
    """Write `model` as an ordinary diffusers pipeline: the trained UNet, and the other parts from its base.

    The UNet is that of the last step, or of the step `best`, which `keep_best` kept.
    """
    if best is not None:
        training.wait()  # until it is written
    base = config.model_paths.stable_diffusion
    directory = locate(base)
    if directory is None or weights_fingerprint(base) != training.provenance[KEY]:
        reason = "is not there any more" if directory is None else "has changed during the training"
        raise InputError(base, f"{reason}: put it back, and the task goes on from its last checkpoint", key=KEY)
    with disk.atomic_directory(model) as temporary:
        with disk.writing(model / "unet"):
            if best is None:
                state.save_unet(temporary, state.result(config.finetune.max_train_steps))
            else:
                shutil.copytree(best_folder(training, best), temporary, dirs_exist_ok=True)
        add_parts(directory, temporary)
        _write_schedule(config, temporary)
        write_index(temporary, str(model_folder.scheduler_config(str(temporary)).get("_class_name")))
        made = {STEPS: config.finetune.max_train_steps, CONDITIONS: training.conditions}
        disk.write_json(temporary / PROVENANCE, training.provenance | made)
        if model.exists():  # after fewer steps
            discard(model)


def _write_schedule(config: Config, directory: Path) -> None:
    """Write the noise schedule into a folder with a UNet, where it is another one than the base model's."""
    base = model_folder.scheduler_config(config.model_paths.stable_diffusion)
    noise_schedule.write_beside(directory, base, config.finetune)
