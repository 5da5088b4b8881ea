"""Train scorers on ratings: the loop, and which epoch's weights are kept.

Only what changes from step to step is saved; order, augmentation and wrong prompts are functions of the epoch. So an
interrupted run ends with the same bits as an uninterrupted one (on a CPU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsyn.config import TrainingSection
from medsyn.stage import NoProgress
from medsyn.training.checkpoint import load_newest
from medsyn.training.metrics import auroc
from medsyn.training.optimizer import optimizer_tensors, restore_optimizer
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import epoch_order, warmup_cosine
from medsyn.training.scorers.loss import Judgements, Learner, advantage_loss, cross_entropy

WEIGHT_DECAY = 0.05
# Learning rate of all but the transformer, relative to the transformer's. At equal rates, training on a few hundred
# ratings ends before the quality metrics matter (held-out AUROC 0.83 instead of 0.88 on 328 real ratings).
HEAD_SPEED = 10.0
WARMUP_SHARE = 0.05  # of all steps
MAX_GRAD_NORM = 1.0
CHECKPOINTS_KEPT = 2


@dataclass(frozen=True)
class Standing:
    """How well a scorer does on the held-out rows after an epoch."""

    epoch: int
    auroc: float  # NaN if only good or only poor ones are held out
    loss: float  # NaN if nothing is held out

    def beats(self, other: Standing | None) -> bool:
        """Whether to keep these weights rather than `other`'s.

        A hundredth of AUROC is one pair of images in a hundred: noise. Within it the lower loss decides; it also
        reflects calibration, which thresholds need. If nothing can be compared, the later epoch wins.
        """
        if other is None or math.isnan(self.loss):
            return True
        mine, theirs = (0.0 if math.isnan(x.auroc) else round(x.auroc, 2) for x in (self, other))
        return mine > theirs or (mine == theirs and self.loss < other.loss)


def standing(epoch: int, judgements: Judgements | None) -> Standing:
    """The `Standing` after an epoch, from the judgements of the held-out rows (None if there are none).

    Raises:
        NoProgress: the last step of the epoch broke the weights, which its own loss does not show.
    """
    if judgements is None:
        return Standing(epoch, math.nan, math.nan)
    loss = float(cross_entropy(judgements))
    if not math.isfinite(loss):
        raise NoProgress(f"the held-out loss of epoch {epoch} is {loss}: lower the learning rate")
    area = auroc(judgements.scores, judgements.good)
    return Standing(epoch, math.nan if area is None else area, loss)


@dataclass
class State:
    """Everything that changes from step to step."""

    scorers: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    names: list[str]  # of the parameters, in the optimizer's order
    loss_sum: Tensor  # [scorers], of the current epoch's steps
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # best weights of each scorer, and
    best: dict[str, Standing] = field(default_factory=dict)  # how well they do
    last: dict[str, Standing] = field(default_factory=dict)

    def offer(self, standings: Mapping[str, Standing]) -> None:
        """Keep the current weights of every scorer that has improved."""
        self.last |= standings
        for name, now in standings.items():
            if now.beats(self.best.get(name)):
                self.best[name] = now
                weights = self.scorers[name].state_dict()
                self.kept[name] = {key: value.detach().clone() for key, value in weights.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name."""
        flat = {f"scorers.{name}": value for name, value in self.scorers.state_dict().items()}
        for scorer, weights in self.kept.items():
            flat |= {f"kept.{scorer}.{name}": value for name, value in weights.items()}
        for kind, standings in (("best", self.best), ("last", self.last)):
            for scorer, one in standings.items():
                flat[f"{kind}.{scorer}"] = torch.tensor([one.epoch, one.auroc, one.loss], dtype=torch.float64)
        return {**flat, **optimizer_tensors(self.optimizer, self.names), "loss_sum": self.loss_sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` were taken from."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.scorers.load_state_dict(below("scorers."))
        restore_optimizer(self.optimizer, self.names, tensors)
        with torch.no_grad():
            self.loss_sum.copy_(tensors["loss_sum"])
        for kind, standings in (("best", self.best), ("last", self.last)):
            for scorer, numbers in below(f"{kind}.").items():
                epoch, area, loss = numbers.tolist()
                standings[scorer] = Standing(int(epoch), area, loss)
        for scorer in self.best:
            self.kept[scorer] = {name: value.clone() for name, value in below(f"kept.{scorer}.").items()}


def fit(
    learners: Mapping[str, Learner],
    rows: np.ndarray,
    held_out: np.ndarray,
    section: TrainingSection,
    peak: float,
    run: TrainingRun,
    before: Mapping[str, Standing],
    extra: Mapping[str, float] | None = None,
) -> State:
    """Train scorers side by side and leave each with the weights of its best epoch.

    Args:
        learners: {"selector": …, "policy": …} or the Policy alone.
        rows: rated rows to train on, int64 [N].
        held_out: rated rows to evaluate every epoch on, int64 [M].
        section: how long to train, and how often to save.
        peak: the highest learning rate of the transformer; the rest learns HEAD_SPEED times as fast.
        run: where to save and report; a stop request is obeyed between steps.
        before: the standing of the initial weights, which are kept if no epoch beats them.
        extra: further values for every line of the metrics.

    Raises:
        InputError: a checkpoint was made with different settings.
        NoProgress: a loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; the state is on disk.
    """
    batch_size, steps = section.batch_size, math.ceil(len(rows) / section.batch_size)
    total = steps * section.max_epochs
    warmup = math.ceil(WARMUP_SHARE * total)
    state = _first_state(learners)
    start = 0
    if found := load_newest(run.checkpoints, run.provenance):
        start = found[0]
        state.restore(found[1])
        del found  # views into a file that the next checkpoint may remove
    else:
        state.offer(before)
    lines = run.resume_metrics("epoch", start // steps)
    newest = lines[-1] if lines else {}
    run.control.leave_if_asked()

    with run:
        for step in range(start, total):
            epoch, position = divmod(step, steps)
            rate = warmup_cosine(step, total, peak, warmup)
            for group in state.optimizer.param_groups:
                group["lr"] = rate * group["speed"]
            order = epoch_order(run.key, epoch, len(rows))
            batch = rows[order[position * batch_size : (position + 1) * batch_size]]
            state.loss_sum += _step(learners, state.optimizer, batch, epoch)

            done, line = step + 1, None
            if done % steps == 0:
                judged = {name: learner.judge_held_out(held_out) for name, learner in learners.items()}
                state.offer({name: standing(epoch + 1, judgements) for name, judgements in judged.items()})
                line = {
                    "epoch": epoch + 1,
                    **_mean_losses(state, steps, epoch + 1),
                    **{f"{name}_auroc": finite(state.last[name].auroc) for name in learners},
                    **_mean_rewards(judged["policy"]),
                    **(extra or {}),
                    "learning_rate": rate,
                }
                newest = line
            shown = {name: newest.get(name) for scorer in learners for name in (f"{scorer}_loss", f"{scorer}_auroc")}
            numbers: dict[str, Any] = {"epoch": epoch + 1, **shown, "learning_rate": rate}
            save_every = total if done == total else steps * section.checkpoints.save_frequency
            run.step_done(done, total, save_every, state.tensors, line, batch_size, **numbers)
    for name, weights in state.kept.items():
        state.scorers[name].load_state_dict(weights)
    return state


def _first_state(learners: Mapping[str, Learner]) -> State:
    scorers = nn.ModuleDict({name: learner.scorer for name, learner in learners.items()})
    parameters = dict(scorers.named_parameters())
    slow = [name for name in parameters if ".transformer." in name]
    fast = [name for name in parameters if name not in slow]
    groups = [
        {"params": [parameters[name] for name in names], "speed": speed}
        for names, speed in ((slow, 1.0), (fast, HEAD_SPEED))
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY)
    device = next(scorers.parameters()).device
    return State(scorers, optimizer, [*slow, *fast], torch.zeros(len(learners), device=device))


def _step(learners: Mapping[str, Learner], optimizer: torch.optim.Optimizer, batch: np.ndarray, epoch: int) -> Tensor:
    """One step of every scorer on a batch of rows; returns their losses [scorers]. The scorers are independent."""
    losses = []
    for learner in learners.values():
        judgements = learner.judge(batch, epoch)
        advantage_loss(judgements).backward()
        torch.nn.utils.clip_grad_norm_(learner.scorer.parameters(), MAX_GRAD_NORM)
        losses.append(cross_entropy(judgements).detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses)


def _mean_losses(state: State, steps: int, epoch: int) -> dict[str, float]:
    """The mean losses of the epoch's `steps`; resets the sums."""
    losses = dict(zip(state.scorers.keys(), (state.loss_sum / steps).tolist(), strict=True))
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise NoProgress(f"the losses of epoch {epoch} are {losses}: lower the learning rate")
    state.loss_sum.zero_()
    return {f"{name}_loss": loss for name, loss in losses.items()}


def _mean_rewards(judged: Judgements | None) -> dict[str, float | None]:
    """The Policy's mean score of good and of poor held-out images under their own prompts."""
    if judged is None:
        return {"reward_good": None, "reward_poor": None}
    own, good, scores = judged.matched, judged.good, judged.scores
    return {"reward_good": mean(scores[own & good]), "reward_poor": mean(scores[own & ~good])}


def mean(values: np.ndarray) -> float | None:
    """The mean of `values`, or None if there are none."""
    return float(values.mean()) if len(values) else None


def finite(value: float) -> float | None:
    """`value`, or None if it is not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None
