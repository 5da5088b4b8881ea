"""What the training loop needs of a scorer: how its members learn in one step, and what they say of images unseen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medsyn.training.scorers.exam import Exam


@dataclass(frozen=True)
class Step:
    """Where in a run a step is."""

    number: int  # from 0, over all epochs
    epoch: int  # from 0
    rows: np.ndarray  # int64 [B], rated rows


class Learner(ABC):
    """The members of an ensemble, side by side, and what they learn from."""

    members: nn.ModuleList
    exam: Exam
    origin: np.ndarray | None = None  # int64 [M], of the exam's images (`thresholds`), where there are thresholds

    @abstractmethod
    def teach(self, step: Step) -> Tensor:
        """Add up the gradients of one step in every member; return the members' mean loss."""

    @abstractmethod
    def answers(self) -> np.ndarray:
        """Logits [M], float32: the answer to every question of the exam; NaN where no member can give it."""


def answer_by_fold(folds: np.ndarray, together: int, answer: Callable[[int, np.ndarray], Tensor]) -> np.ndarray:
    """Have every question answered by the member of its fold, some at a time.

    Args:
        folds: int64 [M].
        together: questions at a time.
        answer: called with (member's number, places int64 [N]); gives logits [N].
    """
    answers = np.full(len(folds), np.nan, dtype=np.float32)
    for fold in range(int(folds.max(initial=-1)) + 1):
        places = np.flatnonzero(folds == fold)
        for chunk in np.split(places, range(together, len(places), together)):
            if len(chunk):
                answers[chunk] = answer(fold, chunk).float().cpu().numpy()
    return answers


def on(device: torch.device, *arrays: np.ndarray) -> Sequence[Tensor]:
    """Arrays as float32 tensors on a device."""
    return [torch.from_numpy(np.ascontiguousarray(one, dtype=np.float32)).to(device) for one in arrays]
