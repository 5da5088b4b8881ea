"""A prepared campaign whose images are made by the real stage, with models that nobody trained: quick."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from medsyn.campaign import guards
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.config import ScorerSection, validate
from medsyn.generation import stage
from medsyn.models.policy import Policy
from medsyn.models.scorers import save_scorer
from medsyn.models.selector import Selector
from medsyn.models.tiny import TEXT_WIDTH
from medsyn.models.weights import embedded_directory
from medsyn.stage import Control

SCORER = ScorerSection(image_size=32, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16, members=2)


def generated_campaign(root: Path) -> Campaign:
    """Two modalities of phantoms, 32 pixels, baseline and filtered; the campaign's directory is `root`."""
    generation = {"num_inference_steps": 2, "batch_size": 2, "batches_per_block": 1, "quality_threshold": 0.0}
    tree = {
        "campaign": {"name": root.name, "dir": str(root)},
        "data": {"modalities": ["X-Ray", "MRI"], "resolution": 32, "phantoms": {"images_per_kind": 5}},
        "device": {"use_cuda": False},
        "training": {"stage": 1},
        "selector": {"require_auroc": None},
        "generation": {**generation, "max_attempts": 3, "keep_rejected": 1},
    }
    campaign = guards.open_for_change(validate(tree, "test"), here=True)
    directory = campaign.directory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_scorer(Selector(SCORER), directory.selector())
        save_scorer(Policy(SCORER, TEXT_WIDTH), directory.policy())
    for modality in campaign.config.data.modalities:
        shutil.copytree(embedded_directory() / "unet", directory.finetuned_unet(modality) / "unet")
    for planned in campaign.plan.by_stage["generate"]:
        stage.run(campaign.config, planned.task, directory, Control())
    return campaign
