"""Two loops on the same images: medsyn's, and the one of diffusers' example `train_text_to_image`, from its API."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetuning.meter import Meter, prime
from medsyn.config import Config, FinetuneSection, validate
from medsyn.data.images.latent_cache import TensorCache, hash_files
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.finetune.dataset import prepare_dataset, training_rows
from medsyn.training.finetune.loop import train
from medsyn.training.finetune.loss import min_snr_weights
from medsyn.training.finetune.parallel import Team
from medsyn.training.finetune.state import first_state
from medsyn.training.run import TrainingRun

TASK = Task("finetune", 0, "ct", "CT")


def write_images(directory: Path, count: int, pixels: int) -> Path:
    """Noise of this size as PNG files with captions; the table."""
    rng = np.random.default_rng(0)
    table = directory / "table.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "Text", "modality", "patient_id"])
        for number in range(-(-count * 5 // 4)):  # a fifth is held out
            Image.fromarray(rng.integers(0, 255, (pixels, pixels), dtype=np.uint8)).save(directory / f"{number}.png")
            writer.writerow([f"{number}.png", f"CT: finding {number % 7}, slice {number}", "CT", f"p{number}"])
    return table


def settings(table: Path, pixels: int, steps: int, **section: Any) -> Config:
    """A campaign's configuration with what both loops share."""
    tree = {"max_train_steps": steps, "checkpointing_steps": 10**6, "lr_warmup_steps": 0, **section}
    return validate({"data": {"table": str(table), "resolution": pixels}, "finetune": tree}, "benchmark")


class _Enough(Exception):
    """All steps are done: a checkpoint of 10 GB at the end is not what is measured."""


class _Counting(Control):
    """Tells the meter of every step."""

    def __init__(self, meter: Meter, warmup: int) -> None:
        super().__init__()
        self.meter, self.warmup = meter, warmup

    def heartbeat(self, step: int, total: int, unit: str = "step", **_: Any) -> None:
        """Starts the meter after the warm-up, and leaves after the last step."""
        if unit != "step":
            return
        if step > self.warmup:
            self.meter.step_done()
        elif step == self.warmup:
            self.meter.start()
        if step == total:
            raise _Enough


def medsyn(config: Config, system: SyntheticSystem, root: Path, meter: Meter, warmup: int) -> float:
    """medsyn's loop, as the stage runs it; the seconds of encoding one image and its caption, which is done once."""
    control = _Counting(meter, warmup)
    rows, held_out = training_rows(config, "CT")
    run = TrainingRun(config, TASK, CampaignDirectory(root), control, {}, 1)
    run.directory.mkdir(parents=True)
    began = meter.clock()
    hashes = hash_files((row.path for row in rows), root / "files.json")
    dataset = prepare_dataset(config, rows, hashes, lambda: system, TensorCache(root / "cache"), control)
    encoding, validated = (meter.clock() - began) / len(rows), None
    if config.finetune.validate_every:
        hashes = hash_files((row.path for row in held_out), root / "files.json")
        cache = TensorCache(root / "cache")
        validated = prepare_dataset(config, held_out, hashes, lambda: system, cache, control)
    scheduler = DDPMScheduler.from_config(system.scheduler_config)
    state = first_state(system.unet, config.finetune, run.key)
    system.vae = system.text_encoder = None
    prime(state.optimizer)
    with meter.watching(state.unet, state.optimizer):
        if warmup == 0:
            meter.start()
        try:
            train(config, state, 0, scheduler, dataset, run, Team(), validated)
        except _Enough:
            run.wait()  # a thread may still write a checkpoint into the folder, which the caller removes
            return encoding
    raise AssertionError("the loop ended before its last step was told")


class _Captioned(Dataset):
    """Pixels in -1..1 and token ids, prepared anew for every sample as the example does."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self.rows, _ = training_rows(config, "CT")
        self.pixels, self.tokenizer = config.data.resolution, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.rows[index].path).convert("RGB").resize((self.pixels, self.pixels))
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(self.rows[index].text, max_length=self.tokenizer.model_max_length, **options)
        return pixels, tokens.input_ids[0]


def diffusers(config: Config, system: SyntheticSystem, meter: Meter, warmup: int) -> None:
    """The example's loop: image decoding, VAE and text encoder in every step, no cache; min-SNR as configured."""
    section, unet, device = config.finetune, system.unet.train().requires_grad_(True), system.device
    scheduler = DDPMScheduler.from_config(system.scheduler_config)
    weights = min_snr_weights(scheduler.alphas_cumprod, section.snr_gamma, system.prediction_type).to(device)
    optimizer = torch.optim.AdamW(
        unet.parameters(), section.learning_rate, weight_decay=section.adam_weight_decay, fused=device.type == "cuda"
    )
    batches = _endless(_Captioned(config, system.tokenizer), section)
    prime(optimizer)
    with meter.watching(unet, optimizer):
        for step in range(section.max_train_steps):
            if step == warmup:
                meter.start()
            told = 0.0
            for _ in range(section.gradient_accumulation_steps):
                pixels, tokens = (tensor.to(device) for tensor in next(batches))
                with torch.no_grad():
                    latents = system.vae.encode(pixels).latent_dist.sample() * system.vae.config.scaling_factor
                    hidden = system.text_encoder(tokens)[0]
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device)
                noisy = scheduler.add_noise(latents, noise, timesteps)
                is_velocity = system.prediction_type == "v_prediction"
                target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
                predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
                errors = (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))
                loss = (errors * weights[timesteps]).mean() / section.gradient_accumulation_steps
                told += loss.item()  # the example gathers and logs every micro-batch
                loss.backward()
            nn.utils.clip_grad_norm_(unet.parameters(), section.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if step >= warmup:
                meter.step_done()


def _endless(dataset: Dataset, section: FinetuneSection) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from DataLoader(dataset, section.train_batch_size, shuffle=True, drop_last=True)
