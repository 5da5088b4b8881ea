"""Fine-tune the UNet of one modality on its real images; `_train` is the loop, from top to bottom.

Only the step, the weights and the optimizer's state are saved; everything else is a function of the step. So an
interrupted run ends with the same bits as an uninterrupted one (on a CPU; a GPU's sums are not that exact).
"""

from __future__ import annotations

import functools
import importlib.util
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from medsyn import disk
from medsyn.config import FREE_OF_FINETUNE, Config, DeviceSection, FinetuneSection, flatten
from medsyn.data.images.latent_cache import TensorCache, hash_files
from medsyn.data.tables.read import ImageRow
from medsyn.errors import InputError
from medsyn.models.device import choose_device
from medsyn.models.pipeline_folder import add_parts
from medsyn.models.scorers import PROVENANCE
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.models.weights import KEY, UNET_WEIGHTS, locate, weights_fingerprint
from medsyn.stage import KEPT, CampaignDirectory, Control, NoProgress, Task
from medsyn.training.checkpoint import discard, load_newest
from medsyn.training.finetune_data import LatentDataset, prepare_dataset, training_rows
from medsyn.training.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import draws, learning_rate

_METRICS_LINES = 100  # about enough for a curve; each one waits for the GPU


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Fine-tune the UNet of `task.modality`; writes model/, metrics.jsonl and summary.json.

    Raises:
        InputProblems: rows or images that cannot be used, with `data.strict`.
        InputError: no images to train on, an option this machine lacks, or a model or checkpoint that was made with
            different settings.
        NoProgress: the loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; everything made so far is on disk.
    """
    assert task.modality is not None
    cache, model = directory.root / "cache" / task.name, directory.finetuned_unet(task.modality)
    disk.sweep_temporaries(cache)
    rows, held_out = training_rows(config, task.modality)
    hashes = hash_files((row.path for row in rows), cache / "files.json")
    provenance = _provenance(config, rows, hashes)
    training = TrainingRun(config, task, directory, control, provenance, config.finetune.checkpoints_total_limit)
    if not training.has_published(model):
        system = load_synthetic(config.model_paths.stable_diffusion, choose_device(config.device).device)
        if system.prediction_type not in ("epsilon", "v_prediction"):
            reason = f"the model predicts '{system.prediction_type}'; only epsilon and v_prediction can be fine-tuned"
            raise InputError(config.model_paths.stable_diffusion, reason, key="model_paths.stable_diffusion")
        scheduler = DDPMScheduler.from_config(system.scheduler_config)
        state = _first_state(system.unet, config.finetune)
        start = state.resume(training)  # a run that cannot resume is refused before hours of encoding
        dataset = prepare_dataset(config, rows, hashes, system, TensorCache(cache), control)
        del system  # VAE and text encoder are no longer needed: training gets their memory
        loss = _train(config, state, start, scheduler, dataset, training)
        summary = {"steps": config.finetune.max_train_steps, "loss": loss, **dataset.counts, "held_out": held_out}
        disk.write_json(training.directory / "summary.json", summary)
        _publish(state, config.model_paths.stable_diffusion, provenance, model)
    shutil.rmtree(training.checkpoints, ignore_errors=True)


def _provenance(config: Config, rows: list[ImageRow], hashes: dict[Path, str]) -> dict[str, Any]:
    """What the weights depend on, under the configuration's key names; a resumed run must agree with all of it."""
    section = {name: value for name, value in config.finetune.model_dump().items() if name not in FREE_OF_FINETUNE}
    return {
        "campaign.seed": config.campaign.seed,
        "data.allow_synthetic": config.data.allow_synthetic,
        "data.resolution": config.data.resolution,
        "data.table": disk.fingerprint([[row.file, row.text, hashes[row.path]] for row in rows]),
        "model_paths.stable_diffusion": weights_fingerprint(config.model_paths.stable_diffusion),
        "world_size": 1,
        **dict(flatten(section, "finetune.")),
    }


def min_snr_weights(alphas_cumprod: Tensor, gamma: float | None, prediction_type: str) -> Tensor:
    """Loss weight of every timestep [T]: min-SNR-gamma (Hang et al. 2023), or 1 without a gamma.

    The method weights the error of x0 with min(SNR, gamma). The error of epsilon is SNR times that of x0, the error of
    v is SNR + 1 times.
    """
    if gamma is None:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, and 1 where snr is 0


def denoising_loss(
    unet: nn.Module,
    scheduler: Any,
    weights: Tensor,
    latents: Tensor,
    hidden: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The weighted mean squared error of a batch, a scalar.

    Args:
        unet: a diffusers UNet that predicts what the scheduler's `prediction_type` says.
        scheduler: a DDPMScheduler with the model's own noise schedule.
        weights: per timestep [T].
        latents: [N, c, h, w].
        hidden: text features [N, 77, D].
        noise: [N, c, h, w].
        timesteps: int64 [N].
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
    predicted = unet(noisy, timesteps, hidden).sample.float()
    return ((predicted - target).square().mean(dim=(1, 2, 3)) * weights[timesteps]).mean()


@dataclass
class _State:
    """Everything that changes from step to step."""

    unet: nn.Module
    parameters: dict[str, Tensor]  # the UNet's, by name
    optimizer: torch.optim.Optimizer
    loss_sum: Tensor  # of the steps since the last line of the metrics, on the device: reading it would wait for it
    average: dict[str, Tensor] = field(default_factory=dict)  # on the CPU: a second UNet does not fit on 12 GB

    def tensors(self, step: int) -> dict[str, Tensor]:
        """The whole state after `step` steps, by name; raises NoProgress if the weights are no longer finite."""
        self.require_finite(step)
        flat = {f"unet.{name}": value for name, value in self.parameters.items()}
        flat |= {f"average.{name}": value for name, value in self.average.items()}
        return {**flat, **optimizer_tensors(self.optimizer, list(self.parameters)), "loss_sum": self.loss_sum}

    def require_finite(self, step: int) -> None:
        """Raise NoProgress if the weights are no longer finite after `step` steps."""
        if not all(bool(torch.isfinite(value).all()) for value in self.parameters.values()):
            raise NoProgress(f"the weights are not finite after step {step}: lower finetune.learning_rate")

    def save_unet(self, directory: Path) -> None:
        """Write `directory`/unet as diffusers does, with the averaged weights if there are any."""
        unet = directory / "unet"
        self.unet.save_config(unet)
        tensors = self.unet.state_dict() | self.average
        save_file({name: value.contiguous() for name, value in tensors.items()}, unet / UNET_WEIGHTS, {"format": "pt"})

    @torch.no_grad()
    def resume(self, training: TrainingRun) -> int:
        """Load the newest checkpoint, if there is one; return the number of completed steps."""
        found = load_newest(training.checkpoints, training.provenance)
        if found is None:
            return 0
        step, tensors = found
        for name, value in self.parameters.items():
            value.copy_(tensors[f"unet.{name}"])
        for name, value in self.average.items():
            value.copy_(tensors[f"average.{name}"])
        restore_optimizer(self.optimizer, list(self.parameters), tensors)
        self.loss_sum.copy_(tensors["loss_sum"])
        return step

    @torch.no_grad()
    def update_average(self, step: int, decay: float) -> None:
        """Update the exponential moving average; its decay rises over the first steps to forget the start."""
        decay = min(decay, (1 + step) / (10 + step))
        for name, value in self.average.items():
            value.lerp_(self.parameters[name].detach().cpu(), 1 - decay)


def _first_state(unet: nn.Module, section: FinetuneSection) -> _State:
    """Prepare the UNet for training, as configured."""
    if section.enable_xformers:
        if importlib.util.find_spec("xformers") is None:
            reason = "xformers is not installed; install it, or use false for PyTorch's own memory-efficient attention"
            raise InputError("configuration", reason, key="finetune.enable_xformers")
        unet.enable_xformers_memory_efficient_attention()
    if section.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train().requires_grad_(True)
    parameters: dict[str, Tensor] = dict(unet.named_parameters())
    optimizer = make_optimizer(parameters, section, unet.device)
    state = _State(unet, parameters, optimizer, torch.zeros((), device=unet.device))
    if section.use_ema:
        state.average = {name: value.detach().to("cpu", copy=True) for name, value in parameters.items()}
    return state


def _autocast(section: DeviceSection, device: torch.device) -> torch.autocast:
    """bfloat16 if the GPU supports it (sm_80), else float32: float16 would need a loss scale, more state to save."""
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.autocast(device.type, torch.bfloat16, enabled=capable and section.precision != "float32")


def _train(
    config: Config, state: _State, start: int, scheduler: Any, dataset: LatentDataset, training: TrainingRun
) -> float | None:
    """Train from step `start` on; return the mean loss of the last interval of the metrics."""
    section, unet, device = config.finetune, state.unet, state.unet.device
    prediction_type, num_timesteps = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    weights = min_snr_weights(scheduler.alphas_cumprod, section.snr_gamma, prediction_type).to(device)
    total, batch = section.max_train_steps, section.train_batch_size * section.gradient_accumulation_steps
    log_every = max(1, min(50, total // _METRICS_LINES))
    before = disk.truncate_jsonl(training.metrics, "step", start)
    loss: float | None = before[-1]["loss"] if before else None
    training.control.leave_if_asked()

    clock, clock_step = time.monotonic(), start
    for step in range(start, total):
        rate = learning_rate(step, section)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        chosen = draws(
            training.key, step, batch, len(dataset), dataset.latent_shape, num_timesteps, section.caption_dropout
        )
        inputs = (*dataset.batch(chosen), torch.from_numpy(chosen.noise), torch.from_numpy(chosen.timesteps))
        for micro in zip(*(tensor.split(section.train_batch_size) for tensor in inputs), strict=True):
            with _autocast(config.device, device):
                part = denoising_loss(unet, scheduler, weights, *(tensor.to(device) for tensor in micro))
            part = part / section.gradient_accumulation_steps
            part.backward()
            state.loss_sum += part.detach()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), section.max_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.update_average(step, section.ema_decay)

        done, line = step + 1, None
        if done % log_every == 0 or done == total:
            loss = _read_loss(state.loss_sum, done, log_every)
            speed = (done - clock_step) * batch / max(time.monotonic() - clock, 1e-9)
            clock, clock_step = time.monotonic(), done
            line = {"step": done, "loss": loss, "learning_rate": rate, "samples_per_second": round(speed, 3)}
        if section.keep_every and done % section.keep_every == 0 and done < total:
            _keep(state, done, training)  # before the checkpoint, from which this step is not made again
        save = functools.partial(state.tensors, done)
        numbers = {"epoch": -(-done * batch // len(dataset)), "loss": loss, "learning_rate": rate}
        training.step_done(done, total, section.checkpointing_steps, save, line, batch, **numbers)
    return loss


def _read_loss(loss_sum: Tensor, step: int, log_every: int) -> float:
    """The mean loss of the interval that ends with `step`; resets the sum. The last interval may be short."""
    loss = float(loss_sum) / (step % log_every or log_every)
    if not math.isfinite(loss):
        raise NoProgress(f"the loss is {loss} at step {step}: lower finetune.learning_rate or raise lr_warmup_steps")
    loss_sum.zero_()
    return loss


def _keep(state: _State, step: int, training: TrainingRun) -> None:
    """Write the UNet as it is after `step` steps, in the place of one that an interrupted attempt has written."""
    state.require_finite(step)
    path = training.directory / f"{KEPT}{step}"
    if path.exists():
        discard(path)
    with disk.atomic_directory(path) as temporary:
        state.save_unet(temporary)
        disk.write_json(temporary / PROVENANCE, training.provenance | {"step": step})


def _publish(state: _State, base: str, provenance: dict[str, Any], model: Path) -> None:
    """Write `model` as an ordinary diffusers pipeline: the UNet, and the other parts of the model it was made from."""
    directory = locate(base)
    if directory is None or weights_fingerprint(base) != provenance[KEY]:
        reason = "is not there any more" if directory is None else "has changed during the training"
        raise InputError(base, f"{reason}: put it back, and the task goes on from its last checkpoint", key=KEY)
    with disk.atomic_directory(model) as temporary:
        with disk.writing(model / "unet"):
            state.save_unet(temporary)
        add_parts(directory, temporary)
        disk.write_json(temporary / PROVENANCE, provenance)
