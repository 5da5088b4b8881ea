"""The random model that the tests of this folder sample from (SD at its smallest), and a campaign with it.

Every process of a run reads them, and none writes to them.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from medsyn import config as configuration
from medsyn.config import Config
from medsyn.data.prompts import write
from medsyn.data.prompts.rows import PromptSource, new_faults
from medsyn.generation.sample import batch
from medsyn.models import tiny
from medsyn.models.scorers import save_scorer
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.stage import CampaignDirectory
from tests.helpers.generation_campaign import CPU, PROMPTS, Campaign, Maker, random_scorers
from tests.helpers.once import once


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

    def make(directory: Path) -> None:
        tiny.build_random(directory, seed=0)
        save_random_unet(directory / "unet", seed=0)

    return once(tmp_path_factory, "generation-model", make)


@pytest.fixture(scope="session")
def finetuned_unets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two more `unet/` directories for the tiny model; never written to."""

    def make(root: Path) -> None:
        for seed in (1, 2):
            save_random_unet(root / str(seed) / "unet", seed)

    root = once(tmp_path_factory, "generation-finetuned", make)
    return [root / "1" / "unet", root / "2" / "unet"]


def prompts(tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[str]) -> str:
    """What preparing a campaign makes of a list of these rows (id, modality, prompt): `data.prompts` of its tasks."""

    def make(folder: Path) -> None:
        folder.mkdir()
        table = folder / "prompts.csv"
        table.write_text("\n".join(["id,modality,prompt", *rows]) + "\n")
        write.resolve(PromptSource.file(table), new_faults(table), folder / "lists")

    return str(once(tmp_path_factory, f"generation-prompts-{name}", make) / "lists")


@pytest.fixture(scope="session")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    lines = [f'{name.lower()}-{i},{name},"{text}"' for name, texts in PROMPTS.items() for i, text in enumerate(texts)]
    return configuration.validate(
        {
            "data": {"prompts": prompts(tmp_path_factory, "few", lines), "resolution": 32},
            "model_paths": {"stable_diffusion": str(tiny_model)},
            "device": {"use_cuda": False},
            "selector": {"require_auroc": None},  # random scorers
            "generation": {
                "img_num": 2,
                "batch_size": 3,
                "batches_per_block": 1,
                "num_inference_steps": 2,
                "scheduler": "euler_a",
                "num_candidates": 2,
                "max_attempts": 5,
                "quality_threshold": 0.61,
            },
        },
        "test",
    )


@pytest.fixture(scope="session")
def inputs(settings: Config, finetuned_unets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign directory as the earlier stages leave it; never written to."""

    def make(root: Path) -> None:
        directory = CampaignDirectory(root)
        for modality, finetuned in zip(PROMPTS, finetuned_unets, strict=True):
            shutil.copytree(finetuned, directory.finetuned_unet(modality) / "unet")
        source, unet = settings.model_paths.stable_diffusion, directory.finetuned_unet("CT")
        sampler = partial(batch.ImageSampler, batch.Recipe.of(settings, "CT"))
        for seed, modality in enumerate((*PROMPTS, None)):
            selector, policy = random_scorers(partial(sampler, load_synthetic(source, CPU, unet_from=unet)), seed)
            save_scorer(policy, directory.policy(modality))
        for modality in (*PROMPTS, None):
            save_scorer(selector, directory.selector(modality))

    return once(tmp_path_factory, "generation-inputs", make)


@pytest.fixture
def campaign(settings: Config, inputs: Path, tmp_path: Path) -> Campaign:
    return Maker(settings, inputs).new(tmp_path / "campaign")


@pytest.fixture(scope="session")
def reference(settings: Config, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """What one undisturbed task makes; never written to."""

    def make(root: Path) -> None:
        shutil.copytree(inputs / "work", root / "work")
        Campaign(settings, CampaignDirectory(root)).run()

    return Campaign(settings, CampaignDirectory(once(tmp_path_factory, "generation-reference", make)))


@pytest.fixture(scope="session")
def many(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Seven blocks of two batches of two: enough for seven shards, with retries all over a block."""
    texts = ["normal", "nodule, left", "nodule, right", "effusion, left", "effusion, right"]
    rows = [f'ct-{number},CT,"CT: {texts[number % 5]} ({number})"' for number in range(13)]
    section = settings.generation.model_copy(update={"batch_size": 2, "batches_per_block": 2, "keep_rejected": 2})
    data = settings.data.model_copy(update={"prompts": prompts(tmp_path_factory, "many", rows)})
    return settings.model_copy(update={"generation": section, "data": data})


@pytest.fixture(scope="session")
def maker(many: Config, inputs: Path) -> Maker:
    return Maker(many, inputs)


@pytest.fixture(scope="session")
def undisturbed(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """What one shard makes that nothing disturbs; never written to."""
    root = once(tmp_path_factory, "generation-undisturbed", lambda root: maker.new(root).run())
    return Campaign(maker.config, CampaignDirectory(root))
