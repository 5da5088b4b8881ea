from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medsyn.campaign.plan import inputs
from tests.helpers.trial import Trial


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """No weights and no image content are needed where the stages are fake."""
    monkeypatch.setattr(inputs.weights, "missing", lambda source: [])
    monkeypatch.setattr(inputs.weights, "weights_fingerprint", lambda source: f"weights of {source}")
    monkeypatch.setattr(inputs, "_check_images", lambda config, rows, progress: [])
    trial = Trial(tmp_path)
    yield trial
    for process in trial.processes:
        if process.poll() is None:
            process.kill()
            process.wait()
