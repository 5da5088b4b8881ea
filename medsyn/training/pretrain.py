"""Pretrain the embedded tiny model: autoencoder first, then text encoder and UNet together, on phantoms alone.

    medsyn pretrain DIRECTORY

remakes the weights in `medsyn/models/embedded` (hours on one CPU core). Phantoms are drawn with seeds and a protocol
that no campaign uses. The autoencoder sees them flipped, rotated, zoomed and recoloured, so that it also handles images
that are not phantoms; the denoiser sees them unchanged, because captions state the side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from medsyn.data.images.pixels import fit_square
from medsyn.data.phantoms.phantom import KINDS, PRETRAINING, draw_phantom, render
from medsyn.models import pipeline_folder, tiny
from medsyn.seeds import seed
from medsyn.training.schedule import warmup_cosine

RESOLUTION = 64
PRETRAIN_SEED = seed("medsyn", "pretrain")
_RENDERED = 128  # as campaigns render them, so that the resize is the same
_WARMUP = 100  # steps
_FLOOR = 0.02  # of the highest learning rate, at the end


def draw_dataset(images_per_kind: int) -> tuple[Tensor, list[str]]:
    """Draw N = kinds x `images_per_kind` phantoms: pixels uint8 [N, 3, 64, 64] and captions."""
    pixels, captions = [], []
    for kind in KINDS:
        for index in range(images_per_kind):
            phantom = draw_phantom(kind, index, PRETRAIN_SEED, protocol=PRETRAINING)
            square = fit_square(render(phantom, _RENDERED), RESOLUTION)
            pixels.append(torch.from_numpy(np.round(square * 255).astype(np.uint8)).permute(2, 0, 1))
            captions.append(phantom.caption)
    return torch.stack(pixels), captions


def _batch(count: int, size: int, part: str, step: int) -> np.ndarray:
    return np.random.default_rng(seed(PRETRAIN_SEED, part, step)).integers(0, count, size)


def _update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """Take one optimizer step on `loss`, with the gradient clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def augment_for_vae(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip, rotate, zoom and recolour a batch [N, 3, H, W] in 0..1: an autoencoder should handle more than phantoms."""
    if rng.random() < 0.5:
        pixels = pixels.flip(-1)
    pixels = torch.rot90(pixels, int(rng.integers(0, 4)), (-2, -1))
    if rng.random() < 0.5:
        side = int(rng.integers(28, RESOLUTION))
        top, left = (int(rng.integers(0, RESOLUTION - side)) for _ in range(2))
        crop = pixels[..., top : top + side, left : left + side]
        pixels = F.interpolate(crop, size=(RESOLUTION, RESOLUTION), mode="bilinear", antialias=True)
    gains = torch.from_numpy(rng.uniform(0.7, 1.2, (len(pixels), 3 if rng.random() < 0.3 else 1, 1, 1))).float()
    offsets = torch.from_numpy(rng.uniform(-0.1, 0.1, (len(pixels), 1, 1, 1))).float()
    return (pixels * gains + offsets).clamp(0, 1)


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


def train_vae(pixels: Tensor, steps: int, report: Callable[[str], None]) -> torch.nn.Module:
    """Train an autoencoder with L1 + edges + a weak KL; its scaling factor makes the latents' variance 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed(PRETRAIN_SEED, "vae") % 2**32)
        vae = tiny.make_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    for step in range(steps):
        rng = np.random.default_rng(seed(PRETRAIN_SEED, "vae augment", step))
        chosen = pixels[torch.from_numpy(_batch(len(pixels), 16, "vae", step))].float() / 255
        images = augment_for_vae(chosen, rng) * 2 - 1
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(
            posterior.mean.shape, generator=torch.Generator().manual_seed(seed(PRETRAIN_SEED, "kl", step))
        )
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        edges = sum((a - b).abs().mean() for a, b in zip(_edges(decoded), _edges(images), strict=True))
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        reconstruction = (decoded - images).abs().mean() + (decoded - images).square().mean()
        loss = reconstruction + edges + 2e-3 * kl
        _update(vae, optimizer, loss, warmup_cosine(step, steps, 2e-3, _WARMUP, _FLOOR))
        if step % 50 == 0:
            report(f"vae step {step}/{steps}: L1+MSE {reconstruction:.4f} edges {edges:.4f} KL {kl:.2f}")
    vae.eval().requires_grad_(False)
    sample = pixels[:: max(1, len(pixels) // 512)]  # phantoms come kind by kind
    latents = torch.cat([vae.encode(piece.float() / 127.5 - 1).latent_dist.mean for piece in sample.split(32)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


@torch.no_grad()
def encode_all(vae: torch.nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled latent means and standard deviations, each [N, c, h, w], of pixels uint8 [N, 3, H, W]."""
    means, deviations = [], []
    for piece in pixels.split(64):
        posterior = vae.encode(piece.float() / 127.5 - 1).latent_dist
        means.append(posterior.mean * vae.config.scaling_factor)
        deviations.append(posterior.std * vae.config.scaling_factor)
    return torch.cat(means), torch.cat(deviations)


def train_denoiser(
    latents: tuple[Tensor, Tensor],
    captions: list[str],
    directory: Path,
    steps: int,
    report: Callable[[str], None],
    checkpoint: Callable[[torch.nn.Module, torch.nn.Module], None],
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Train text encoder and UNet together by v-prediction; return their moving averages.

    Source: v-prediction, Salimans and Ho 2022; classifier-free guidance by caption dropout, Ho and Salimans 2022.
    """
    tokenizer = CLIPTokenizer.from_pretrained(str(directory / "tokenizer"))
    encode = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    tokens = tokenizer(captions, **encode).input_ids
    empty = tokenizer([""], **encode).input_ids
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed(PRETRAIN_SEED, "denoiser") % 2**32)
        text_encoder = tiny.make_text_encoder(len(tokenizer), int(tokenizer.eos_token_id)).train()
        unet = tiny.make_unet().train()
    model = torch.nn.ModuleList([text_encoder, unet])
    average = copy.deepcopy(model).eval().requires_grad_(False)
    scheduler = tiny.make_scheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2, betas=(0.9, 0.99))
    mean, deviation = latents
    smoothed, batch = 1.0, 32
    for step in range(steps):
        rng = np.random.default_rng(seed(PRETRAIN_SEED, "caption dropout", step))
        generator = torch.Generator().manual_seed(seed(PRETRAIN_SEED, "noise", step))
        chosen = torch.from_numpy(_batch(len(mean), batch, "denoiser", step))
        ids = torch.where(torch.from_numpy(rng.random((batch, 1)) < 0.1), empty, tokens[chosen])
        clean = mean[chosen] + deviation[chosen] * torch.randn(mean[chosen].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (batch,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = scheduler.get_velocity(clean, noise, timesteps)
        # captions repeat within a batch: encode each once
        unique, inverse = torch.unique(ids, dim=0, return_inverse=True)
        hidden = text_encoder(unique).last_hidden_state[inverse]
        loss = F.mse_loss(unet(noisy, timesteps, hidden).sample, target)
        _update(model, optimizer, loss, warmup_cosine(step, steps, 1.2e-3, _WARMUP, _FLOOR))
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        smoothed += (float(loss) - smoothed) * 0.02
        if step % 50 == 0:
            report(f"denoiser step {step}/{steps}: loss {smoothed:.4f}")
        if step and step % 500 == 0:
            checkpoint(average[0], average[1])
    return average[0], average[1]


def pretrain(
    directory: Path,
    images_per_kind: int = 1200,
    vae_steps: int = 1600,
    denoiser_steps: int = 5500,
    report: Callable[[str], None] = print,
) -> Path:
    """Train the tiny model and save it as a float16 diffusers directory; returns `directory`."""
    torch.set_num_threads(1)
    directory.mkdir(parents=True, exist_ok=True)
    tiny.save_tokenizer(directory / "tokenizer")
    tiny.make_scheduler().save_pretrained(directory / "scheduler")
    pipeline_folder.write_index(directory)
    report("drawing phantoms")
    pixels, captions = draw_dataset(images_per_kind)
    vae = train_vae(pixels, vae_steps, report)
    copy.deepcopy(vae).half().save_pretrained(directory / "vae")

    def save(text_encoder: torch.nn.Module, unet: torch.nn.Module) -> None:
        copy.deepcopy(text_encoder).half().save_pretrained(directory / "text_encoder")
        pipeline_folder.load_as_float32(directory / "text_encoder")
        copy.deepcopy(unet).half().save_pretrained(directory / "unet")

    latents = encode_all(vae, pixels)
    save(*train_denoiser(latents, captions, directory, denoiser_steps, report, save))
    return directory
