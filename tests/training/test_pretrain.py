from __future__ import annotations

from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline

from medsyn.data.images.pixels import fit_square
from medsyn.data.phantoms.phantom import KINDS, draw_phantom, render
from medsyn.disk import sha256_file
from medsyn.models import model_folder
from medsyn.training.pretrain import PRETRAIN_SEED, draw_dataset, pretrain


def test_pre_training_sees_protocol_a_alone() -> None:
    pixels, captions = draw_dataset(1)
    for kind, drawn, caption in zip(KINDS, pixels, captions, strict=True):
        seen, other = (draw_phantom(kind, 0, PRETRAIN_SEED, protocol=protocol) for protocol in ("A", "B"))
        assert caption == seen.caption
        wanted, unlike = (fit_square(render(phantom, 128), 64).transpose(2, 0, 1) for phantom in (seen, other))
        assert np.abs(drawn.numpy() / 255 - wanted).max() < 0.003
        assert np.abs(wanted - unlike).max() > 0.1


def test_the_recipe_makes_the_same_readable_model_twice(tmp_path: Path) -> None:
    first, again = (
        pretrain(tmp_path / name, images_per_kind=2, vae_steps=2, denoiser_steps=2, report=lambda _: None)
        for name in ("first", "again")
    )
    assert model_folder.problems(str(first)) == []
    for part in ("vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model", "text_encoder/model"):
        assert sha256_file(first / f"{part}.safetensors") == sha256_file(again / f"{part}.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(str(first))
    assert pipeline.vae.config.scaling_factor != 0.18215  # measured on these latents, not SD's
