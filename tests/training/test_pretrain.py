from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline

from medsyn.disk import sha256_file
from medsyn.models import model_folder
from medsyn.training.pretrain import pretrain


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
