"""The training loop, from top to bottom."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import torch
from torch import Tensor

from medsyn import disk
from medsyn.ahead import ahead
from medsyn.config import Config
from medsyn.stage import NoProgress
from medsyn.training.finetune.dataset import LatentDataset
from medsyn.training.finetune.loss import denoising_loss, min_snr_weights
from medsyn.training.finetune.parallel import Team
from medsyn.training.finetune.precision import autocast
from medsyn.training.finetune.publish import keep_best, keep_unet
from medsyn.training.finetune.speed import figures, training_flops
from medsyn.training.finetune.state import TrainState
from medsyn.training.finetune.validation import Validation, best_step, is_due
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import draws, learning_rate

_METRICS_LINES = 100  # about enough for a curve; each one waits for the GPU


def train(
    config: Config,
    state: TrainState,
    start: int,
    scheduler: Any,
    dataset: LatentDataset,
    training: TrainingRun,
    team: Team,
    held_out: LatentDataset | None = None,
) -> dict[str, Any]:
    """Train from step `start` on; return what the summary says of it.

    Every rank of a team does the same, on its part of each batch; only the first one writes, and measures the loss of
    `held_out`.
    """
    section, unet, device = config.finetune, state.unet, state.unet.device
    prediction_type, num_timesteps = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    weights = min_snr_weights(scheduler.alphas_cumprod, section.snr_gamma, prediction_type).to(device)
    total, batch = section.max_train_steps, section.global_batch
    log_every = max(1, min(50, total // _METRICS_LINES))
    before = disk.truncate_jsonl(training.metrics, "step", start) if team.rank == 0 else []
    loss: float | None = before[-1]["loss"] if before else None
    team.agree_to_stop(training.control)
    training.control.leave_if_asked()
    validation = None
    if held_out is not None:
        validation = Validation(config, training, held_out, scheduler, weights)
        validation.begin(state, start)
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

    clock, clock_step = time.monotonic(), start
    for step, inputs in ahead(samples_of, range(start, total)):
        rate = learning_rate(step, section)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        step_loss = torch.zeros_like(state.loss_sum)
        for micro in zip(*(tensor.split(section.train_batch_size) for tensor in inputs.result()), strict=True):
            with autocast(state.dtype, device):
                part = denoising_loss(
                    unet, scheduler, weights, *(tensor.to(device, non_blocking=True) for tensor in micro)
                )
            part = part / (batch / len(micro[0]))
            state.loss_scale.scaled(part).backward()
            step_loss += part.detach()
        team.agree_to_stop(training.control)
        state.loss_sum += team.sum_gradients(step_loss)
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

        keep = team.rank == 0 and section.keep_every and done % section.keep_every == 0 and done < total
        kept = [keep_unet(state, done, training, config)] if keep else []
        validates = is_due(section, done)
        if done % log_every == 0 or done == total or validates:
            loss = _read_loss(state.loss_sum, done, done - _last_line(done, log_every, section.validate_every))
            team.require_equal(done)
            seconds, steps = max(time.monotonic() - clock, 1e-9), done - clock_step
            line = {"step": done, "loss": loss, "learning_rate": rate}
            line |= {"samples_per_second": round(steps * batch / seconds, 3)}
            line |= figures(steps * flops, seconds, config, device)
            if validation is not None and validates:
                line |= validation.line(state, done)
                kept += keep_best(state, done, training, validation) if section.keep_best else []
            clock, clock_step = time.monotonic(), done
        save = functools.partial(state.tensors, done)
        numbers = {"epoch": -(-done * batch // len(dataset)), "loss": loss, "learning_rate": rate}
        training.step_done(done, total, section.checkpointing_steps, save, line, batch, kept, **numbers)
    best = best_step(validation.losses(), total) if validation is not None and section.keep_best else None
    return {"loss": loss} | ({} if best is None else {"best_step": best})


def _last_line(done: int, *intervals: int | None) -> int:
    """The step of the last line of the metrics before the one after `done` steps; 0 for none."""
    return max((done - 1) // every * every for every in intervals if every)


def _read_loss(loss_sum: Tensor, step: int, steps: int) -> float:
    """The mean loss of the last `steps`, which end with `step`; resets the sum."""
    loss = float(loss_sum) / steps
    if not math.isfinite(loss):
        raise NoProgress(f"the loss is {loss} at step {step}: lower finetune.learning_rate or raise lr_warmup_steps")
    loss_sum.zero_()
    return loss
