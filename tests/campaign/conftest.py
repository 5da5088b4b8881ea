from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.trial import Trial, need_no_content


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """A small campaign with fake stages; what still runs of it when the test ends is killed."""
    need_no_content(monkeypatch)
    trial = Trial(tmp_path)
    yield trial
    for process in trial.processes:
        if process.poll() is None:
            process.kill()
            process.wait()
