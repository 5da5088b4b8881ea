"""How many images are computed at once: what is configured, or half as many each time that a GPU runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from medsyn.training.run import TrainingRun

Inputs = TypeVar("Inputs")
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def configured(wanted: int, training: TrainingRun) -> int:
    """What a run that was interrupted had come to, if its configuration is the same."""
    last = training.conditions[-1] if training.conditions else {}
    return int(last["micro_batch"]) if last.get("train_batch_size") == wanted else wanted


def unless_out_of_memory(
    gradients_of: Callable[[Inputs, int], Result], inputs: Inputs, micro_batch: int, least: int = 1
) -> Result | None:
    """What `gradients_of` returns; None if the GPU's memory does not suffice, and less than `micro_batch` might fit.

    Raises:
        torch.cuda.OutOfMemoryError: it is `least` images at once already.
    """
    try:
        return gradients_of(inputs, micro_batch)
    except torch.cuda.OutOfMemoryError as error:
        if micro_batch <= least:
            advice = "finetune.gradient_checkpointing=true, use_8bit_adam=true or a lower data.resolution takes less"
            once = "one image" if least == 1 else f"{least} images"
            raise torch.cuda.OutOfMemoryError(f"{once} at once is too much: {advice} ({error})") from None
    torch.cuda.empty_cache()  # here, where the error no longer holds on to what was computed
    return None


def halved(micro_batch: int) -> int:
    """Half as many, at least 1."""
    logger.warning("the GPU's memory does not hold %d images at once: trying half as many", micro_batch)
    return max(1, micro_batch // 2)
