"""The embedded model follows its prompts: an independent judge, trained on phantoms of its own, says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
