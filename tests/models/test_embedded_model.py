"""The embedded model follows its prompts, as an independent judge says, and diffusers loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from medsyn.models.weights import embedded_directory
from tests.helpers.paths import ROOT


@pytest.mark.slow
def test_guided_samples_show_the_modality_and_the_finding_asked_for(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    command = [sys.executable, "benchmarks/prompt_following.py", "--images", "36", "--json", str(numbers)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rates = json.loads(numbers.read_text())["results"]["samples"]
    assert rates["modality"]["value"] >= 0.9
    assert rates["finding"]["value"] >= 0.6


def test_diffusers_own_pipeline_loads_and_runs_it_without_arguments() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(str(embedded_directory()))
    pipeline.set_progress_bar_config(disable=True)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {next(part.parameters()).dtype for part in parts} == {torch.float32}
    image = pipeline("CT: nodule, left", num_inference_steps=1, height=64, width=64, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
