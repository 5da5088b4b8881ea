"""medsyn: Stable Diffusion for medical images as resumable Slurm campaigns.

The names below are what other programs may rely on (docs/python-api.md). Each is imported when it is asked for, so that
`import medsyn` costs nothing: some of them need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsyn.campaign.state.campaign_file import open_campaign
    from medsyn.campaign.tables import read_attempts, read_manifest
    from medsyn.config import load as load_config
    from medsyn.data.check import check_tables
    from medsyn.data.images.read import read_image
    from medsyn.data.prompts.store import Item
    from medsyn.errors import InputError, InputProblems
    from medsyn.generation.api.generator import GeneratedImage, Generator
    from medsyn.scoring.api import score
    from medsyn.scoring.score import ScoredImage

__all__ = [
    "GeneratedImage",
    "Generator",
    "InputError",
    "InputProblems",
    "Item",
    "ScoredImage",
    "__version__",
    "check_tables",
    "load_config",
    "open_campaign",
    "read_attempts",
    "read_image",
    "read_manifest",
    "score",
]
__version__ = "0.5.0"

_HOME = {
    "GeneratedImage": "medsyn.generation.api.generator",
    "Generator": "medsyn.generation.api.generator",
    "InputError": "medsyn.errors",
    "InputProblems": "medsyn.errors",
    "Item": "medsyn.data.prompts.store",
    "ScoredImage": "medsyn.scoring.score",
    "check_tables": "medsyn.data.check",
    "load_config": "medsyn.config:load",
    "open_campaign": "medsyn.campaign.state.campaign_file",
    "read_attempts": "medsyn.campaign.tables",
    "read_image": "medsyn.data.images.read",
    "read_manifest": "medsyn.campaign.tables",
    "score": "medsyn.scoring.api",
}


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, original = _HOME[name].partition(":")
        return getattr(import_module(module), original or name)


def __dir__() -> list[str]:
    return __all__
