"""The training loop, from top to bottom."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsyn import time_use
from medsyn.ahead import ahead
from medsyn.config import Config
from medsyn.stage import NoProgress
from medsyn.text import and_more
from medsyn.training.finetune.dataset import LatentDataset
from medsyn.training.finetune.loss import denoising_loss, min_snr_weights
from medsyn.training.finetune.parallel import Team
from medsyn.training.finetune.precision import autocast
from medsyn.training.finetune.publish import is_kept, keep_best, keep_unet
from medsyn.training.finetune.samples import SampleStrips
from medsyn.training.finetune.speed import figures, training_flops
from medsyn.training.finetune.state import TrainState
from medsyn.training.finetune.validation import Validation, best_step, is_due
from medsyn.training.finetune.watch import LossWatch
from medsyn.training.micro_batches import configured, halved, unless_out_of_memory
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import draws, learning_rate, samples_of_step

_ROWS_SHOWN = 8
_METRICS_LINES = 100  # about enough for a curve; each one waits for the GPU


@time_use.of(time_use.TRAINING)
def train(
    config: Config,
    state: TrainState,
    start: int,
    scheduler: Any,
    dataset: LatentDataset,
    training: TrainingRun,
    team: Team,
    held_out: LatentDataset | None = None,
    strips: SampleStrips | None = None,
) -> dict[str, Any]:
    """Train from step `start` on; return what the summary says of it.

    Every rank of a team does the same, on its part of each batch; only the first one writes, and measures the loss of
    `held_out`, and makes the `strips`.
    """
    section, unet, device = config.finetune, state.unet, state.unet.device
    prediction_type, num_timesteps = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    weights = min_snr_weights(scheduler.alphas_cumprod, section.snr_gamma, prediction_type).to(device)
    total, batch = section.max_train_steps, section.global_batch
    log_every = max(1, min(50, total // _METRICS_LINES))
    before = training.resume_metrics("step", start)
    loss: float | None = before[-1]["loss"] if before else None
    logged = before[-1]["step"] if before else start - start % log_every  # the steps of the newest line
    team.agree(training.control)
    training.control.leave_if_asked()
    validation = None
    if held_out is not None:
        validation = Validation(config, training, held_out, scheduler, weights)
        validation.begin(state, start)
        if strips is not None and start == 0:
            strips.write(state, 0)
    flops = batch * training_flops(unet, dataset.latent_shape, config) if team.rank == 0 else 0

    def samples_of(step: int) -> tuple[Tensor, ...]:
        """Latents, text features, noise and timesteps of this rank's part of a step's batch: a function of the step."""
        chosen = draws(
            training.key,
            step,
            batch,
            len(dataset),
            dataset.latent_shape,
            num_timesteps,
            section.caption_dropout,
            section.noise_offset,
        ).part(team.part(batch))
        inputs = (*dataset.batch(chosen), torch.from_numpy(chosen.noise), torch.from_numpy(chosen.timesteps))
        return tuple(tensor.pin_memory() for tensor in inputs) if device.type == "cuda" else inputs

    def gradients_of(inputs: tuple[Tensor, ...], micro_batch: int) -> list[Tensor]:
        """Add up the gradients of a step; the parts of its loss, micro-batch by micro-batch."""
        parts = []
        for micro in zip(*(tensor.split(micro_batch) for tensor in inputs), strict=True):
            with autocast(state.dtype, device):
                part = denoising_loss(
                    unet, scheduler, weights, *(tensor.to(device, non_blocking=True) for tensor in micro)
                )
            part = part / (batch / len(micro[0]))
            state.loss_scale.scaled(part).backward()
            parts.append(part.detach())
        return parts

    def require_finite(all_steps: bool = True) -> None:
        """Raise NoProgress, naming the rows, if the loss of a step is not finite."""
        if (bad := watch.first_bad(all_steps)) is not None:
            raise NoProgress(_not_finite(*bad, config, dataset, training, team.part(batch), micro_batch))

    def state_to_save(done: int) -> dict[str, Tensor]:
        require_finite()
        return state.tensors(done)

    watch, micro_batch = LossWatch(), configured(section.train_batch_size, training)
    conditions = {"precision": str(state.dtype).removeprefix("torch."), "train_batch_size": section.train_batch_size}
    training.note_conditions(start + 1, **conditions, micro_batch=micro_batch)
    clock, clock_step = time.monotonic(), start
    for step, inputs in ahead(samples_of, range(start, total)):
        rate = learning_rate(step, section)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        while True:  # all ranks or none
            parts = unless_out_of_memory(gradients_of, inputs.result(), min(micro_batch, -(-batch // team.size)))
            if not team.agree(training.control, out_of_memory=parts is None) and parts is not None:
                break
            micro_batch = halved(min(micro_batch, -(-batch // team.size)))
            training.note_conditions(step + 1, **conditions, micro_batch=micro_batch)
            team.zero_gradients(state.optimizer)
        step_loss = torch.zeros_like(state.loss_sum)
        for part in parts:
            step_loss += part
        total_loss = team.sum_gradients(step_loss)
        watch.note(step, torch.stack([total_loss, *parts]))
        require_finite(all_steps=False)
        state.loss_sum += total_loss
        state.loss_scale.unscale(state.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), section.max_grad_norm)
        if state.average:
            state.average.wait_for_copy()
        if state.loss_scale.allows(norm, step + 1):
            state.optimizer.step()
        team.zero_gradients(state.optimizer)
        done, line = step + 1, None
        if state.average:
            state.average.update(done)

        keeps = team.rank == 0 and is_kept(section, done)
        kept = [keep_unet(state, done, training, config)] if keeps else []
        validates = is_due(section, done)
        if done % log_every == 0 or done == total or validates:
            require_finite()
            loss, logged = _read_loss(state.loss_sum, done - logged), done
            team.require_equal(done)
            seconds, steps = max(time.monotonic() - clock, 1e-9), done - clock_step
            line = {"step": done, "loss": loss, "learning_rate": rate}
            line |= {"samples_per_second": round(steps * batch / seconds, 3)}
            line |= figures(steps * flops, seconds, config, device)
            line |= {"micro_batch": micro_batch} if micro_batch < section.train_batch_size else {}
            if validation is not None and validates:
                line |= validation.line(state, done)
                if strips is not None:
                    strips.write(state, done)
                kept += keep_best(state, done, training, validation.losses()) if section.keep_best else []
            clock, clock_step = time.monotonic(), done
        save = functools.partial(state_to_save, done)
        numbers = {"epoch": -(-done * batch // len(dataset)), "loss": loss, "learning_rate": rate}
        training.step_done(done, total, section.checkpointing_steps, save, line, batch, kept, **numbers)
    best = best_step(validation.losses(), total) if validation is not None and section.keep_best else None
    return {"loss": loss} | ({} if best is None else {"best_step": best})


def _read_loss(loss_sum: Tensor, steps: int) -> float:
    """The mean loss of an interval of so many steps; resets the sum."""
    loss = float(loss_sum) / steps
    loss_sum.zero_()
    return loss


def _not_finite(
    step: int,
    losses: list[float],
    config: Config,
    dataset: LatentDataset,
    training: TrainingRun,
    part: slice,
    micro_batch: int,
) -> str:
    """What to say of a step with a loss that is not finite: the batch's, and those of this rank's micro-batches."""
    batch = samples_of_step(training.key, step, config.finetune.global_batch, len(dataset))
    mine = np.array_split(batch[part], range(micro_batch, len(batch[part]), micro_batch))
    bad = [rows for rows, loss in zip(mine, losses[1:], strict=False) if not math.isfinite(loss)]
    names = and_more([dataset.names[sample] for rows in bad or [batch] for sample in rows], _ROWS_SHOWN)
    advice = "lower finetune.learning_rate or raise lr_warmup_steps, or look at these images"
    return f"the loss is {losses[0]} at step {step + 1}, on {names} of {config.data.table}: {advice}"
