"""What other programs load: the fine-tuned model as a pipeline directory, and the UNets kept on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.errors import InputError
from medsyn.models.pipeline_folder import add_parts
from medsyn.models.scorers import PROVENANCE
from medsyn.models.weights import KEY, locate, weights_fingerprint
from medsyn.stage import KEPT
from medsyn.training.background_writer import Job, Tensors
from medsyn.training.checkpoint import discard
from medsyn.training.finetune.state import TrainState
from medsyn.training.run import TrainingRun


def keep_unet(state: TrainState, step: int, training: TrainingRun) -> Job:
    """Writes the UNet as it is now, after `step` steps, in the place of one that an interrupted attempt has written."""
    state.require_finite(step)
    path = training.directory / f"{KEPT}{step}"

    def write(trained: Tensors) -> None:
        if path.exists():
            discard(path)
        with disk.atomic_directory(path) as temporary:
            state.save_unet(temporary, trained)
            disk.write_json(temporary / PROVENANCE, training.provenance | {"step": step})

    return Job(state.result(step), write)


def publish(state: TrainState, steps: int, base: str, provenance: dict[str, Any], model: Path) -> None:
    """Write `model` as an ordinary diffusers pipeline: the UNet after its `steps`, the other parts from its base."""
    directory = locate(base)
    if directory is None or weights_fingerprint(base) != provenance[KEY]:
        reason = "is not there any more" if directory is None else "has changed during the training"
        raise InputError(base, f"{reason}: put it back, and the task goes on from its last checkpoint", key=KEY)
    with disk.atomic_directory(model) as temporary:
        with disk.writing(model / "unet"):
            state.save_unet(temporary, state.result(steps))
        add_parts(directory, temporary)
        disk.write_json(temporary / PROVENANCE, provenance)
