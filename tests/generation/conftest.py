"""The random model that the tests of this folder sample from (SD at its smallest), and a campaign with it."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from medsyn import config as configuration
from medsyn.config import Config
from medsyn.generation.sample import batch
from medsyn.models import tiny
from medsyn.models.scorers import save_scorer
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.stage import CampaignDirectory
from tests.helpers.generation_campaign import CPU, PROMPTS, Campaign, Maker, random_scorers, resolve_prompts


def save_random_unet(directory: Path, seed: int) -> None:
    """A UNet of one level and no middle in place of the tiny model's three: these tests run it some thousand times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=tiny.LATENT_CHANNELS,
            out_channels=tiny.LATENT_CHANNELS,
            block_out_channels=(16,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=tiny.TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    unet.save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers directory with random weights; never written to."""
    directory = tiny.build_random(tmp_path_factory.mktemp("tiny") / "model", seed=0)
    save_random_unet(directory / "unet", seed=0)
    return directory


@pytest.fixture(scope="session")
def finetuned_unets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two more `unet/` directories for the tiny model; never written to."""
    root = tmp_path_factory.mktemp("finetuned")
    for seed in (1, 2):
        save_random_unet(root / str(seed) / "unet", seed)
    return [root / "1" / "unet", root / "2" / "unet"]


@pytest.fixture(scope="session")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    table = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    lines = [f'{name.lower()}-{i},{name},"{text}"' for name, texts in PROMPTS.items() for i, text in enumerate(texts)]
    table.write_text("\n".join(["id,modality,prompt", *lines]) + "\n")
    return configuration.validate(
        {
            "data": {"prompts": resolve_prompts(table), "resolution": 32},
            "model_paths": {"stable_diffusion": str(tiny_model)},
            "device": {"use_cuda": False},
            "generation": {
                "img_num": 2,
                "batch_size": 3,
                "batches_per_block": 1,
                "num_inference_steps": 2,
                "scheduler": "euler_a",
                "num_candidates": 2,
                "max_attempts": 5,
                "quality_threshold": 0.6,
            },
        },
        "test",
    )


@pytest.fixture(scope="session")
def inputs(settings: Config, finetuned_unets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign directory as the earlier stages leave it; never written to."""
    root = tmp_path_factory.mktemp("campaign") / "inputs"
    directory = CampaignDirectory(root)
    for modality, finetuned in zip(PROMPTS, finetuned_unets, strict=True):
        shutil.copytree(finetuned, directory.finetuned_unet(modality) / "unet")
    source, unet = settings.model_paths.stable_diffusion, directory.finetuned_unet("CT")
    make = partial(batch.Painter, batch.Recipe.of(settings, "CT"))
    for seed, modality in enumerate((*PROMPTS, None)):
        selector, policy = random_scorers(partial(make, load_synthetic(source, CPU, unet_from=unet)), seed)
        save_scorer(policy, directory.policy(modality))
    save_scorer(selector, directory.selector())
    return root


@pytest.fixture
def campaign(settings: Config, inputs: Path, tmp_path: Path) -> Campaign:
    return Maker(settings, inputs).new(tmp_path / "campaign")


@pytest.fixture(scope="session")
def reference(settings: Config, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """What one undisturbed task makes; never written to."""
    root = tmp_path_factory.mktemp("reference")
    shutil.copytree(inputs / "work", root / "work")
    whole = Campaign(settings, CampaignDirectory(root))
    whole.run()
    return whole


@pytest.fixture(scope="session")
def many(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Seven blocks of two batches of two: enough for seven shards, with retries all over a block."""
    table = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    texts = ["normal", "nodule, left", "nodule, right", "effusion, left", "effusion, right"]
    rows = [f'ct-{number},CT,"CT: {texts[number % 5]} ({number})"' for number in range(13)]
    table.write_text("\n".join(["id,modality,prompt", *rows]) + "\n")
    section = settings.generation.model_copy(update={"batch_size": 2, "batches_per_block": 2})
    data = settings.data.model_copy(update={"prompts": resolve_prompts(table)})
    return settings.model_copy(update={"generation": section, "data": data})


@pytest.fixture(scope="session")
def maker(many: Config, inputs: Path) -> Maker:
    return Maker(many, inputs)


@pytest.fixture(scope="session")
def undisturbed(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """What one shard makes that nothing disturbs; never written to."""
    whole = maker.new(tmp_path_factory.mktemp("undisturbed") / "campaign")
    whole.run()
    return whole
