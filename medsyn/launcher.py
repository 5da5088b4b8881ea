"""The place among several processes that a launcher such as `accelerate launch` or torchrun has given this one."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """Which of how many processes this is, and which of those on this machine."""

    rank: int
    size: int
    local: int


def launched() -> Launched | None:
    """This process's place; None if no launcher has started it, or started it alone."""
    places = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(place.isdigit() for place in places) or int(places[1]) < 2:
        return None
    return Launched(*map(int, places))
