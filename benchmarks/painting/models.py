"""What all ways paint and judge with: the same networks, a diffusers pipeline made of them, scorers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from medsyn.config import ScorerSection
from medsyn.models.policy import Policy
from medsyn.models.sampler import build_scheduler
from medsyn.models.score_images import selector_scores
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.schedulers import SchedulerName


def sd15(system: SyntheticSystem) -> None:
    """Put random weights of SD v1.5's shape into `system`; speed does not depend on their values."""
    device, dtype = system.device, system.dtype
    with torch.device(device):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=system.tokenizer.vocab_size,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                eos_token_id=system.tokenizer.eos_token_id,
            )
        )
    system.unet = unet.to(dtype).eval().requires_grad_(False)
    system.vae = vae.eval().requires_grad_(False)
    system.text_encoder = text.to(dtype).eval().requires_grad_(False)


def pipeline(system: SyntheticSystem, scheduler: SchedulerName, steps: int) -> StableDiffusionPipeline:
    """A plain diffusers pipeline of the same networks, all in one precision as people use it."""
    same = system.dtype == torch.float32
    made = StableDiffusionPipeline(
        vae=system.vae if same else copy.deepcopy(system.vae).to(system.dtype),
        text_encoder=system.text_encoder,
        tokenizer=system.tokenizer,
        unet=system.unet,
        scheduler=build_scheduler(scheduler, system.scheduler_config, steps),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@dataclass(frozen=True)
class Judge:
    """Scorers with random weights: what they say means nothing, what it costs does."""

    selector: Selector
    policy: Policy
    threshold: float = 0.0  # of the Selector

    @classmethod
    def random(cls, system: SyntheticSystem, section: ScorerSection) -> Judge:
        """Scorers of a size, the same in every run."""
        width = system.text_encoder.config.hidden_size
        with torch.random.fork_rng():
            torch.manual_seed(0)
            scorers = Selector(section), Policy(section, width)
        selector, policy = (scorer.to(system.device).eval().requires_grad_(False) for scorer in scorers)
        return cls(selector, policy)

    def passes(self, images: Sequence[np.ndarray], pooled: Tensor) -> list[bool]:
        """Which of the grey images [H, W] clear the threshold; the Policy scores them all, as medsyn's does."""
        device = next(self.selector.parameters()).device
        pixels = torch.from_numpy(np.stack(images)).to(device)[:, None].float().expand(-1, 3, -1, -1) / 255
        self.policy.score(pixels, pooled)
        return (selector_scores(self.selector, pixels, None).score >= self.threshold).tolist()
