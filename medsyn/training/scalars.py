"""The numbers of a line of metrics, for tools that show one number under one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_INTERVAL = ("", "_low", "_high")  # what is measured as [mean, low, high]


def scalars(line: Mapping[str, Any], unit: str) -> dict[str, float]:
    """The numbers of a line by name, but for its step, whose key is `unit`."""
    return {
        name + ending: number
        for name, value in line.items()
        if name != unit
        for ending, number in zip(_INTERVAL, value if isinstance(value, Sequence) else [value], strict=False)
        if isinstance(number, (int, float))
    }
