from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from medsyn.data.phantoms.phantom import KINDS, draw_phantom
from medsyn.disk import sha256_file
from medsyn.models import tiny, weights
from tests.helpers.paths import ROOT

HASHES = ROOT / "docs" / "embedded-model.sha256"
EMBEDDED_FILES = sorted(path for path in weights.embedded_directory().rglob("*") if path.is_file())


def test_the_embedded_model_is_small_and_has_no_pickle() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED_FILES) <= 10 * 2**20
    assert {path.suffix for path in EMBEDDED_FILES} <= {".json", ".txt", ".safetensors"}


def test_the_embedded_files_are_the_documented_ones() -> None:
    base = weights.embedded_directory()
    documented = dict(reversed(line.split("  ")) for line in HASHES.read_text().splitlines())
    assert {str(path.relative_to(base)): sha256_file(path) for path in EMBEDDED_FILES} == documented


def test_the_embedded_tokenizer_keeps_captions_whole() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(str(weights.embedded_directory() / "tokenizer"))
    for kind in KINDS:
        caption = draw_phantom(kind, 1, seed=3).caption
        tokens = tokenizer(caption).input_ids
        assert len(tokens) < 40
        decoded = tokenizer.decode(tokens, skip_special_tokens=True)
        assert decoded.replace(" ", "") == caption.lower().replace(" ", "")


def test_same_seed_same_weights_other_seed_others(tmp_path: Path) -> None:
    files = [tiny.build_random(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = (sha256_file(path / "unet" / "diffusion_pytorch_model.safetensors") for path in files)
    assert first == again != other


def test_building_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny.build_random(tmp_path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("source", ["embedded", "random"])
def test_diffusers_own_pipeline_reads_it(source: str, tmp_path: Path) -> None:
    directory = weights.embedded_directory() if source == "embedded" else tiny.build_random(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(str(directory))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline(
        "OCT: drusen", num_inference_steps=2, height=64, width=64, generator=generator, output_type="np"
    ).images[0]
    assert image.shape == (64, 64, 3)
    text_encoder = CLIPTextModel.from_pretrained(str(directory / "text_encoder"), torch_dtype="auto")
    assert text_encoder.dtype == pipeline.unet.dtype  # also where the configuration decides: transformers 5
