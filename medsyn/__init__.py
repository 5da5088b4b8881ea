"""medsyn: Stable Diffusion for medical images as resumable Slurm campaigns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsyn.generation.api.generator import GeneratedImage, Generator

__all__ = ["GeneratedImage", "Generator", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Generator` and `GeneratedImage`, imported when they are asked for: they need torch, most commands do not."""
    if name in ("Generator", "GeneratedImage"):
        from medsyn.generation.api import generator

        return getattr(generator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
