"""Train ensembles on what experts said: the loop, and which epoch's weights are kept.

All members of all scorers are trained side by side, each without its own fold. Only what changes from step to step is
saved; order, versions and wrong prompts are functions of the epoch. So an interrupted run ends with the same bits as an
uninterrupted one (on a CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsyn.config import TrainingSection
from medsyn.stage import NoProgress
from medsyn.training.checkpoint import load_newest
from medsyn.training.optimizer import optimizer_tensors, restore_optimizer
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import epoch_order, warmup_cosine
from medsyn.training.scorers.exam import Record
from medsyn.training.scorers.learner import Learner, Step

WEIGHT_DECAY = 0.05
# Learning rate of all but the transformer, relative to the transformer's. At equal rates, training on a few hundred
# ratings ends before the quality metrics matter (held-out AUROC 0.83 instead of 0.88 on 328 real ratings).
HEAD_SPEED = 10.0
WARMUP_SHARE = 0.05  # of all steps
MAX_GRAD_NORM = 1.0
CHECKPOINTS_KEPT = 2

Figures = Callable[[Mapping[str, Record], int], dict[str, Any]]  # of the answers after an epoch, for the metrics
Keep = Callable[[int, Mapping[str, Record]], None]  # of the number of epochs done, and the answers


@dataclass
class State:
    """Everything that changes from step to step."""

    members: nn.ModuleDict  # of each scorer
    optimizer: torch.optim.Optimizer
    names: list[str]  # of the parameters, in the optimizer's order
    loss_sum: Tensor  # [scorers], of the current epoch's steps
    records: dict[str, Record]
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # weights of each scorer's best epoch so far

    def examine(self, epoch: int, learners: Mapping[str, Learner]) -> None:
        """Put down what every scorer answers after an epoch, and keep the weights of those that are best now.

        Raises:
            NoProgress: the last step of the epoch broke the weights, which its own loss does not show.
        """
        for name, learner in learners.items():
            record = self.records[name]
            record.add(epoch, learner.answers())
            if not record.epochs:  # nothing is held out: the last epoch it is
                self._keep(name)
                continue
            if not math.isfinite(loss := record.loss(epoch)):
                raise NoProgress(f"the held-out loss of epoch {epoch} is {loss}: lower the learning rate")
            if record.best == epoch:
                self._keep(name)

    def _keep(self, name: str) -> None:
        weights = self.members[name].state_dict()
        self.kept[name] = {key: value.detach().clone() for key, value in weights.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name."""
        flat = {f"members.{name}": value for name, value in self.members.state_dict().items()}
        for scorer, weights in self.kept.items():
            flat |= {f"kept.{scorer}.{name}": value for name, value in weights.items()}
        flat |= {f"answers.{name}": torch.from_numpy(record.answers.copy()) for name, record in self.records.items()}
        return {**flat, **optimizer_tensors(self.optimizer, self.names), "loss_sum": self.loss_sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` were taken from."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.members.load_state_dict(below("members."))
        restore_optimizer(self.optimizer, self.names, tensors)
        with torch.no_grad():
            self.loss_sum.copy_(tensors["loss_sum"])
        for name, record in self.records.items():
            record.answers[:] = tensors[f"answers.{name}"].numpy()
            if kept := below(f"kept.{name}."):
                self.kept[name] = {key: value.to(self.loss_sum.device, copy=True) for key, value in kept.items()}


def fit(
    learners: Mapping[str, Learner],
    rows: np.ndarray,
    section: TrainingSection,
    peak: float,
    run: TrainingRun,
    figures: Figures,
    before: bool = False,
    keep: Keep | None = None,
) -> State:
    """Train ensembles side by side and leave the members of each with the weights of its best epoch.

    Args:
        learners: {"selector": …, "policy": …}, or one of them.
        rows: rated rows, int64 [N]; a member does not learn from those of its own fold.
        section: how long to train, and how often to save.
        peak: the highest learning rate of the transformer; the rest learns HEAD_SPEED times as fast.
        run: where to save and report; a stop request is obeyed between steps.
        figures: what the answers after an epoch say, for its line of the metrics.
        before: whether the members as they come are a choice, too: they are kept if no epoch is better.
        keep: called at every epoch that is saved, with the number of epochs done and what was answered in them.

    Raises:
        InputError: a checkpoint was made with different settings.
        NoProgress: a loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; the state is on disk.
    """
    batch_size, steps = section.batch_size, math.ceil(len(rows) / section.batch_size)
    total = steps * section.max_epochs
    warmup = math.ceil(WARMUP_SHARE * total)
    state = _first_state(learners, section.max_epochs)
    start = 0
    if found := load_newest(run.checkpoints, run.provenance):
        start = found[0]
        state.restore(found[1])
        del found  # views into a file that the next checkpoint may remove
    elif before:
        state.examine(0, learners)
    lines = run.resume_metrics("epoch", start // steps)
    newest = lines[-1] if lines else {}
    run.control.leave_if_asked()

    with run:
        for number in range(start, total):
            epoch, position = divmod(number, steps)
            rate = warmup_cosine(number, total, peak, warmup)
            for group in state.optimizer.param_groups:
                group["lr"] = rate * group["speed"]
            order = epoch_order(run.key, epoch, len(rows))
            batch = rows[order[position * batch_size : (position + 1) * batch_size]]
            state.loss_sum += _step(learners, state.optimizer, Step(number, epoch, batch))

            done, line = number + 1, None
            if done % steps == 0:
                losses = _mean_losses(state, steps, epoch + 1)
                state.examine(epoch + 1, learners)
                rates = {f"{name}_learning_rate": rate for name in learners}
                if keep is not None and (epoch + 1) % section.checkpoints.save_frequency == 0:
                    keep(epoch + 1, state.records)
                line = newest = {"epoch": epoch + 1, **losses, **figures(state.records, epoch + 1), **rates}
            shown = {name: newest.get(name) for scorer in learners for name in (f"{scorer}_loss", f"{scorer}_auroc")}
            told: dict[str, Any] = {"epoch": epoch + 1, **shown, "learning_rate": rate}
            save_every = total if done == total else steps * section.checkpoints.save_frequency
            run.step_done(done, total, save_every, state.tensors, line, batch_size, **told)
    for name, weights in state.kept.items():
        state.members[name].load_state_dict(weights)
    return state


def _first_state(learners: Mapping[str, Learner], epochs: int) -> State:
    members = nn.ModuleDict({name: learner.members for name, learner in learners.items()})
    parameters = {name: weight for name, weight in members.named_parameters() if weight.requires_grad}
    slow = [name for name in parameters if ".transformer." in name]
    fast = [name for name in parameters if ".transformer." not in name]
    groups = [
        {"params": [parameters[name] for name in names], "speed": speed}
        for names, speed in ((slow, 1.0), (fast, HEAD_SPEED))
        if names
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY)
    device = next(members.parameters()).device
    records = {name: Record(learner.exam, epochs) for name, learner in learners.items()}
    return State(members, optimizer, [*slow, *fast], torch.zeros(len(learners), device=device), records)


def _step(learners: Mapping[str, Learner], optimizer: torch.optim.Optimizer, step: Step) -> Tensor:
    """One step of every scorer; returns their losses [scorers]. Scorers and members are independent."""
    losses = []
    for learner in learners.values():
        losses.append(learner.teach(step).detach())
        for member in learner.members:
            torch.nn.utils.clip_grad_norm_(member.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses)


def _mean_losses(state: State, steps: int, epoch: int) -> dict[str, float]:
    """The mean losses of the epoch's `steps`; resets the sums."""
    losses = dict(zip(state.members.keys(), (state.loss_sum / steps).tolist(), strict=True))
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise NoProgress(f"the losses of epoch {epoch} are {losses}: lower the learning rate")
    state.loss_sum.zero_()
    return {f"{name}_loss": loss for name, loss in losses.items()}
