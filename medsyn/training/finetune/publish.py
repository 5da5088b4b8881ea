"""What other programs load: the fine-tuned model as a pipeline directory, and the UNets kept on the way."""

from __future__ import annotations

from pathlib import Path

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.models import model_folder, noise_schedule
from medsyn.models.pipeline_folder import add_parts, write_index
from medsyn.models.scorers import PROVENANCE
from medsyn.models.weights import KEY, locate, weights_fingerprint
from medsyn.stage import KEPT
from medsyn.training.background_writer import Job, Tensors
from medsyn.training.checkpoint import discard
from medsyn.training.finetune.state import TrainState
from medsyn.training.run import CONDITIONS, TrainingRun

STEPS = "finetune.max_train_steps"


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


def publish(state: TrainState, config: Config, training: TrainingRun, model: Path) -> None:
    """Write `model` as an ordinary diffusers pipeline: the trained UNet, and the other parts from its base."""
    base = config.model_paths.stable_diffusion
    directory = locate(base)
    if directory is None or weights_fingerprint(base) != training.provenance[KEY]:
        reason = "is not there any more" if directory is None else "has changed during the training"
        raise InputError(base, f"{reason}: put it back, and the task goes on from its last checkpoint", key=KEY)
    with disk.atomic_directory(model) as temporary:
        with disk.writing(model / "unet"):
            state.save_unet(temporary, state.result(config.finetune.max_train_steps))
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
