"""Images of held-out captions while a UNet is trained, from the same noise every time: a strip that a person looks at.

They are of an unfinished model, 20 steps each, to see whether training goes where it should. Nothing reads them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image, PngImagePlugin
from torch import Tensor

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images.read import SYNTHETIC_KEY
from medsyn.models.stable_diffusion import load_vae
from medsyn.seeds import seed
from medsyn.training.finetune.dataset import LatentDataset
from medsyn.training.finetune.precision import autocast
from medsyn.training.finetune.state import TrainState
from medsyn.training.run import TrainingRun

FOLDER = "samples"  # of the task's
_STEPS = 20
_NOTICE = "Generated images of an unfinished model. They show no patient. Not for diagnosis."


class SampleStrips:
    """The strips of one run: the first captions that are held out, `finetune.validation_images` of them."""

    def __init__(
        self, config: Config, training: TrainingRun, held_out: LatentDataset, scheduler: Any, texts: Mapping[str, str]
    ) -> None:
        """Prepare to sample.

        Args:
            config: says how many, and the guidance of the campaign's images.
            training: names the folder, and what the noise follows from.
            held_out: the images whose captions are drawn.
            scheduler: with the noise schedule that is trained with.
            texts: the captions, by their keys.
        """
        self._config, self._data, self._schedule, self._texts = config, held_out, scheduler.config, texts
        self._key, self._folder = training.key, training.directory / FOLDER
        self._captions = list(dict.fromkeys(held_out.captions))[: config.finetune.validation_images]

    def write(self, state: TrainState, step: int) -> None:
        """Sample with what would be published after `step` steps; an earlier strip of this step is replaced."""
        with state.published_weights(step):
            latents = [self._sample(state, number) for number in range(len(self._captions))]
        vae = load_vae(self._config.model_paths.stable_diffusion, state.unet.device)
        pictures = [_picture(vae, one) for one in latents]  # one at a time takes the least memory
        about = {SYNTHETIC_KEY: "YES", "Notice": _NOTICE, "step": str(step)}
        about |= {f"caption {number}": self._texts[key] for number, key in enumerate(self._captions, 1)}
        disk.make_directory(self._folder)
        disk.write_atomic(self._folder / f"step-{step:09d}.png", _png(np.concatenate(pictures, axis=1), about))

    @torch.no_grad()
    def _sample(self, state: TrainState, number: int) -> Tensor:
        """Latents [1, c, h, w] of one caption, with guidance."""
        unet, shape = state.unet, self._data.latent_shape
        solver = DPMSolverMultistepScheduler.from_config(self._schedule, algorithm_type="dpmsolver++", solver_order=2)
        solver.set_timesteps(_STEPS)
        keys = (self._data.empty_caption, self._captions[number])
        hidden = torch.stack([self._data.cache.read(key, "hidden") for key in keys]).float().to(unet.device)
        rng = np.random.default_rng(seed(*self._key, "sample", number))
        noise = torch.from_numpy(rng.standard_normal((1, *shape), dtype=np.float32)).to(unet.device)
        latents, scale = noise * solver.init_noise_sigma, self._config.generation.guidance_scale
        for timestep in solver.timesteps:
            given = solver.scale_model_input(latents.expand(2, -1, -1, -1), timestep)
            with autocast(state.dtype, unet.device):
                without, with_caption = unet(given, timestep, hidden).sample.float().chunk(2)
            latents = solver.step(without + scale * (with_caption - without), timestep, latents).prev_sample
        return latents


@torch.no_grad()
def _picture(vae: Any, latents: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of latents [1, c, h, w]; black where they are not finite."""
    pixels = vae.decode(latents.float() / vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    found: np.ndarray = ((pixels / 2 + 0.5).nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return found


def _png(strip: np.ndarray, about: Mapping[str, str]) -> bytes:
    text, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in about.items():
        text.add_text(key, value)
    Image.fromarray(strip).save(stream, format="PNG", pnginfo=text)
    return stream.getvalue()
