"""A small rated set, without files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medsyn.config import ScorerSection
from medsyn.training.scorers.folds import Folds
from medsyn.training.scorers.rated import RatedSet

SECTION = ScorerSection(image_size=32, patch_size=16, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16, members=2)
KEY = (0, "test")
FOLDS = Folds(2, {f"{image}.png": image % 2 for image in range(10)}, 0)


def rated_set(**changes: Any) -> RatedSet:
    """Twelve ratings of ten images, four prompts each of CT and MRI."""
    generator = torch.Generator().manual_seed(0)
    fields: dict[str, Any] = {
        "pixels": torch.randint(0, 256, (10, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "image_modality": np.array(["CT"] * 4 + ["MRI"] * 4 + ["CT", "MRI"]),
        "image_group": np.array([f"{image}.png" for image in range(10)]),
        "generated": np.zeros(10, dtype=bool),
        "decoded": np.zeros(0, dtype=np.int64),
        "pooled": torch.randn(8, 6, generator=generator),
        "line": np.arange(2, 14),
        "image": np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]),
        "prompt": np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 4, 0, 1]),
        "rating": np.array([1, 2, 3] * 4),
        "weight": np.ones(12, dtype=np.float32),
        "modality": np.array(["CT"] * 4 + ["MRI"] * 4 + ["CT", "MRI", "CT", "CT"]),
        "prompt_modality": np.array(["CT"] * 4 + ["MRI"] * 4),
        "counts": {},
    }
    return RatedSet(**{**fields, **changes})
