"""Which blocks are run, where, and why the others are not."""

from __future__ import annotations

import re
from typing import Literal

from tests.docs.pages import Block

Kind = Literal["quick", "slow", "slurm", "not run"]

# A block with such a command is not run, but every command of it is checked (test_commands.py). Anything else is run.
NOT_RUN = {
    r"pip install|uv sync|python3\.11 -m venv|\.venv-": "installs from the network, as .ci/run does in every run",
    r"launch\.py submit configs/tiny\.yaml": "the `undisturbed` campaign is this line with smaller numbers",
    r"uv run pytest": "these tests are such a run",
    r"uv run (ruff|mypy)": ".ci/run does it before the tests",
    r"configs/sd15": "needs Stable Diffusion's weights and a GPU; tests/cli plans with these files",
    r"apptainer |docker |scp ": "tests/container builds both images and enters them",
    r"--use_pretrained_only": "tests/cli asks for these prompts with fewer steps",
    r"medsyn pretrain": "takes an hour; tests/training/test_pretrain.py trains a few steps",
    r"benchmarks/": "takes minutes to hours; tests/benchmarks runs the parts",
    r"rate (import|report|next)": "needs what people have answered in a browser; tests/rating has answers of its own",
    r"\bJOB\b": "stands for a job of the moment; tests/slurm does this to jobs of its own",
}
SLURM = r"slurm/devcluster (?!--help)|--cluster slurm|\bsbatch\b"
# All other commands import torch, or look at what a finished campaign has left.
QUICK = r"medsyn (phantoms|check|prompts|plan|init)\b|^cp |^mkdir "


def reason(block: Block) -> str | None:
    """Why the block is not run, or None."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, block.text)), None)


def kind(block: Block) -> Kind:
    if reason(block):
        return "not run"
    if re.search(SLURM, block.text):
        return "slurm"
    lines = [" ".join(words) for words in block.commands]
    return "quick" if lines and all(re.search(QUICK, line) for line in lines) else "slow"
