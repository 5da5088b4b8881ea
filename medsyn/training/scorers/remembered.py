"""Small results of long work, kept for the run after a kill and for the next stage: metrics, and strengths of damage.

Nothing depends on them: what is not there is worked out again.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from medsyn import disk
from medsyn.data.images.latent_cache import TensorCache

_NAME = "numbers"


class Remembered:
    """Tensors under content keys, kept to the last bit."""

    def __init__(self, directory: Path) -> None:
        disk.sweep_temporaries(directory)
        self._cache = TensorCache(directory, dtype=None)
        self._fresh: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        """What is kept under a key."""
        if key in self._fresh:
            return self._fresh[key]
        return self._cache.read(key, _NAME) if key in self._cache else None

    def put(self, key: str, numbers: Tensor) -> None:
        """Keep a tensor, on disk from the next `save` on."""
        self._fresh[key] = numbers.detach().cpu()

    def save(self) -> None:
        """Write what is not on disk yet, all or nothing."""
        self._cache.add({key: {_NAME: numbers} for key, numbers in self._fresh.items()})
        self._fresh = {}
