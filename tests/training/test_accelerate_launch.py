"""`accelerate launch` as a user types it; what its processes then do, test_finetune_ranks.py shows with forks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medsyn import disk
from medsyn.campaign.state import campaign_file
from medsyn.stage import CampaignDirectory, Control
from medsyn.training.finetune import stage
from tests.helpers.paths import ROOT

SMALL = [
    *("data.modalities=[CT]", "data.phantoms.images_per_kind=5", "data.phantoms.prompts_per_kind=1"),
    *("data.phantoms.image_size=64", "device.use_cuda=false", "finetune.max_train_steps=2", "finetune.lora.rank=2"),
    *("finetune.train_batch_size=1", "finetune.gradient_accumulation_steps=2"),
]


@pytest.mark.slow
def test_two_processes_of_accelerate_end_in_the_bits_of_one(tmp_path: Path) -> None:
    """Without a GPU, too: --multi_gpu has it start several processes, and nothing else."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", port]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    task = ["launch.py", "finetune", "configs/tiny.yaml", "--task", "ct", *SMALL, f"campaign.dir={tmp_path / 'two'}"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, *task]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    campaign = campaign_file.open_campaign(tmp_path / "two")
    *_, end = disk.read_jsonl(campaign.directory.attempts("finetune", "ct"))
    assert (end["exit_code"], end["use"]["ranks"]) == (0, 2)
    alone = CampaignDirectory(tmp_path / "one")
    stage.run(campaign.config, campaign.plan.find("finetune", "ct").task, alone, Control())
    for name in ("unet/diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"):
        one, two = (directory.finetuned_unet("CT") / name for directory in (alone, campaign.directory))
        assert one.read_bytes() == two.read_bytes()
