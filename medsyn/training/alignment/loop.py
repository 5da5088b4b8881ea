"""One round of training, from top to bottom."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medsyn import time_use
from medsyn.ahead import ahead
from medsyn.config import Config
from medsyn.stage import NoProgress
from medsyn.training.alignment.judging import Judging
from medsyn.training.alignment.lessons import Lessons, Seen
from medsyn.training.alignment.methods import LOSSES, Rows, distance
from medsyn.training.finetune.dataset import LatentDataset
from medsyn.training.finetune.loss import denoising_errors, min_snr_weights
from medsyn.training.finetune.precision import autocast
from medsyn.training.finetune.publish import keep_best
from medsyn.training.finetune.state import TrainState
from medsyn.training.finetune.watch import LossWatch
from medsyn.training.micro_batches import configured, halved, unless_out_of_memory
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import RandomKey, draws, warmup_cosine

# what is added up over the steps of a line of the metrics, in this order
FIGURES = ("synthetic_loss", "real_loss", "winner_loss", "kl")


@dataclass(frozen=True)
class Batch:
    """What one step sees."""

    seen: Seen
    real: tuple[Tensor, ...]  # latents, text features, noise, timesteps; nothing without real images


@dataclass(frozen=True)
class Round:
    """What a round is made of."""

    number: int  # from 1
    first: int  # steps of the rounds before it
    key: RandomKey
    lessons: Lessons
    real: LatentDataset | None


@time_use.of(time_use.TRAINING)
def train(
    config: Config,
    state: TrainState,
    start: int,
    scheduler: Any,
    this: Round,
    training: TrainingRun,
    judging: Judging,
) -> int:
    """Train from step `start` of the task on until the round's last, or until the judge says stop; return that step.

    Args:
        config: the campaign's.
        state: after `start` steps.
        start: completed steps, those of earlier rounds included.
        scheduler: a DDPMScheduler with the model's noise schedule.
        this: the round.
        training: where to report and to save.
        judging: looks at what the model makes now and then, and keeps what it thinks of it.

    Raises:
        NoProgress: the loss is no longer finite.
        Saved: a stop was requested; everything made so far is on disk.
    """
    section, unet, device = config.align, state.unet, state.unet.device
    weights = min_snr_weights(scheduler.alphas_cumprod, config.finetune.snr_gamma, scheduler.config.prediction_type).to(
        device
    )
    last, rows_per_unit = this.first + section.max_train_steps, this.lessons.units.rows.shape[1]
    log_every = max(1, min(10, section.max_train_steps // 20))
    lines = training.resume_metrics("step", start)
    logged = max((line["step"] for line in lines), default=this.first)
    logged = max(logged, this.first)
    share = section.real / (section.real + section.learned) if this.real is not None else 0.0

    def batch_of(step: int) -> Batch:
        """A function of the step."""
        seen = this.lessons.at(step - this.first)
        if this.real is None or not section.real:
            return Batch(seen, ())
        shape, levels = this.real.latent_shape, scheduler.config.num_train_timesteps
        part = draws(
            (*this.key, "real"), step - this.first, section.real, len(this.real), shape, levels,
            config.finetune.caption_dropout, config.finetune.noise_offset,
        )  # fmt: skip
        return Batch(seen, (*this.real.batch(part), torch.from_numpy(part.noise), torch.from_numpy(part.timesteps)))

    def gradients_of(batch: Batch, micro_batch: int) -> list[Tensor]:
        """Add up the gradients of a step; its figures, micro-batch by micro-batch."""
        found = []
        size = max(1, micro_batch // rows_per_unit) * rows_per_unit
        count = len(batch.seen.latents)
        for first in range(0, count, size):
            rows = slice(first, first + size)
            units = slice(first // rows_per_unit, (first + size) // rows_per_unit)
            loss, figures = _candidates(rows, units, batch.seen)
            state.loss_scale.scaled((1 - share) * loss).backward()
            found.append(figures)
        for micro in zip(*(tensor.split(micro_batch) for tensor in batch.real), strict=True):
            with autocast(state.dtype, device):
                errors = denoising_errors(unet, scheduler, weights, *(tensor.to(device) for tensor in micro))
            loss = errors.sum() / section.real
            state.loss_scale.scaled(share * loss).backward()
            found.append(torch.stack([loss.new_zeros(()), loss.detach(), *[loss.new_zeros(())] * 2]))
        return found

    def _candidates(rows: slice, units: slice, seen: Seen) -> tuple[Tensor, Tensor]:
        """The part of the loss that a micro-batch of candidates has, and its part of `FIGURES`."""
        inputs = seen.latents, seen.noise, seen.timesteps, seen.hidden, seen.reference
        latents, noise, timesteps, hidden, reference = (tensor[rows].to(device) for tensor in inputs)
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
        with autocast(state.dtype, device):
            predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, hidden).sample.float()
        advantage = seen.advantage[units].to(device)
        given = Rows(predicted, reference, target, weights[timesteps], advantage)
        loss = LOSSES[section.method](given, section.strength).sum() / len(seen.advantage)
        with torch.no_grad():
            better = given.error(predicted)[0::rows_per_unit][advantage > 0].sum()
            winners = (seen.advantage > 0).sum().clamp(min=1).to(device)
            moved = distance(given).sum() / len(seen.latents)
        return loss, torch.stack([loss.detach(), loss.new_zeros(()), better / winners, moved])

    def require_finite(all_steps: bool = True) -> None:
        if (bad := watch.first_bad(all_steps)) is not None:
            raise NoProgress(f"the loss is {bad[1][0]} at step {bad[0] + 1}: lower align.learning_rate")

    def state_to_save(done: int) -> dict[str, Tensor]:
        require_finite()
        return state.tensors(done)

    judging.begin(state, start)
    watch, micro_batch = LossWatch(), configured(section.train_batch_size, training)
    conditions = {"precision": str(state.dtype).removeprefix("torch."), "train_batch_size": section.train_batch_size}
    training.note_conditions(start + 1, **conditions, micro_batch=micro_batch)
    clock, clock_step = time.monotonic(), start
    for step, inputs in ahead(batch_of, range(start, last)):
        rate = warmup_cosine(
            step - this.first, section.max_train_steps, section.learning_rate, section.lr_warmup_steps, 1.0
        )
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        while (parts := unless_out_of_memory(gradients_of, inputs.result(), micro_batch, rows_per_unit)) is None:
            micro_batch = halved(micro_batch)
            training.note_conditions(step + 1, **conditions, micro_batch=micro_batch)
            state.optimizer.zero_grad(set_to_none=True)
        figures = torch.stack(parts).sum(dim=0)
        watch.note(step, figures)
        require_finite(all_steps=False)
        state.loss_sum += figures
        state.loss_scale.unscale(state.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), config.finetune.max_grad_norm)
        if state.loss_scale.allows(norm, step + 1):
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        done, kept, stops = step + 1, [], False
        line: dict[str, Any] | None = None
        judges = (done - this.first) % section.judge_every == 0 or done == last
        if (done - this.first) % log_every == 0 or judges:
            require_finite()
            line = {"step": done, "round": this.number, **_read(state.loss_sum, done - logged), "learning_rate": rate}
            seconds, steps, logged = max(time.monotonic() - clock, 1e-9), done - clock_step, done
            line |= {"samples_per_second": round(steps * section.global_batch / seconds, 3)}
            if judges:
                line |= judging.look(state, done)
                stops = judging.turned is not None
                kept = keep_best(state, done, training, judging.losses())
            clock, clock_step = time.monotonic(), done
        save = functools.partial(state_to_save, done)
        total = section.rounds * section.max_train_steps
        samples, every = section.global_batch, section.checkpointing_steps
        training.step_done(done, total, every, save, line, samples, kept, learning_rate=rate)
        if stops:
            return done
    return last


def _read(sums: Tensor, steps: int) -> dict[str, float]:
    """The means of an interval of so many steps; resets the sums."""
    found = {name: float(value) / steps for name, value in zip(FIGURES, sums, strict=True)}
    sums.zero_()
    return found
