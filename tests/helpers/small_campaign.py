"""The line of the quick start on a smaller plan: the real stages, run locally, for whatever compares with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import warm
from tests.helpers.paths import ROOT

SMALLER = [
    "data.modalities=[X-Ray, MRI]",
    "data.phantoms.images_per_kind=12",
    "data.phantoms.prompts_per_kind=3",
    "data.phantoms.image_size=64",
    "finetune.max_train_steps=6",
    "finetune.train_batch_size=4",
    "finetune.checkpointing_steps=2",
    "training.max_epochs=3",
    "training.checkpoints.save_frequency=1",
    "align.prompts=2",
    "align.candidates=2",
    "align.max_train_steps=2",
    "align.train_batch_size=4",
    "align.judge_every=2",
    "align.judge_images=8",
    "generation.modes=[baseline, filtered]",
    "generation.num_inference_steps=3",
    "generation.batch_size=2",
    "generation.batches_per_block=1",
    "generation.blocks_per_shard=2",
    "generation.quality_threshold=0.3",
    "selector.require_auroc=null",
    "generation.max_attempts=4",
    "evaluation.kid_subsets=3",
]


def submit(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "launch.py", "submit", "configs/tiny.yaml", "--cluster", "local", *SMALLER]
    return subprocess.Popen(
        [*command, f"campaign.dir={directory}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(directory: Path) -> str:
    process = submit(directory)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def kill_when(directory: Path, pattern: str) -> None:
    """SIGKILL the scheduler and every worker as soon as a file matching `pattern` is there."""
    process = submit(directory)
    deadline = time.monotonic() + 600
    while not any(directory.glob(pattern)):
        assert process.poll() is None, f"ended before {pattern} appeared: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def results(directory: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often a campaign was interrupted, by name."""
    names = ["*.safetensors", "*.png", "manifest.jsonl", "attempts.jsonl"]
    files = [path for name in names for path in (directory / "work").rglob(name)]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def images(directory: Path) -> list[Path]:
    return sorted((directory / "work" / "generate").rglob("*.png"))


def flip(path: Path) -> None:
    """Bit rot: the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def medsyn(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines (standard output, then standard error) of a command that must not end in a traceback."""
    result = warm.medsyn(*arguments)
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, [*result.stdout.splitlines(), *result.stderr.splitlines()]
