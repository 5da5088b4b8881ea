"""What TensorBoard shows of a task's event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.training.run import EVENT_FILES


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a folder, by tag: its steps and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0}).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_as_metrics(work: Path, unit: str) -> None:
    """The numbers of a task's metrics file are in its event files, each once, in single precision."""
    expected: dict[str, Any] = {}
    for line in disk.read_jsonl(work / "metrics.jsonl"):
        for name, value in line.items():
            number = value[0] if isinstance(value, list) else value
            if name != unit and number is not None:
                expected.setdefault(name, []).append((line[unit], pytest.approx(number, rel=1e-6)))
    found = scalars(work / EVENT_FILES)
    assert {tag: found.get(tag) for tag in expected} == expected
    assert {tag for tag in found if not tag.endswith(("_low", "_high"))} == expected.keys()
