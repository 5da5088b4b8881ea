"""What the documents show of Slurm, run as it is printed on clusters that they start themselves."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs import kinds
from tests.docs.pages import PAGES, blocks, name
from tests.docs.sandbox import Sandbox
from tests.helpers.slurm_cluster import DEVCLUSTER

SHOWN = [
    page for page in PAGES if any(block.language == "bash" and kinds.kind(block) == "slurm" for block in blocks(page))
]


@pytest.mark.parametrize("page", SHOWN, ids=name)
def test_what_is_shown_of_slurm(page: Path, tmp_path: Path, short_directory: Callable[[], Path]) -> None:
    clusters = short_directory() / "c"
    sandbox = Sandbox(tmp_path, clusters)
    sandbox.run_script('slurm/devcluster start && eval "$(slurm/devcluster env)"', "a cluster for the page")
    try:
        for block in blocks(page):
            if block.language == "bash" and kinds.kind(block) == "slurm":
                assert "Traceback" not in sandbox.run(block)
    finally:
        for directory in clusters.parent.glob(f"{clusters.name}-*"):
            subprocess.run([DEVCLUSTER, "stop", "--dir", directory], capture_output=True, check=False, timeout=120)
