"""What is remembered is not worked out again, and changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medsyn.data.degradations import graded
from medsyn.models.image_encoder import ImageEncoder
from medsyn.training.scorers.degraded import degraded_comparisons
from medsyn.training.scorers.measured import MeasuredImages
from medsyn.training.scorers.remembered import Remembered
from tests.training.scorers.rated_sets import KEY, SECTION, rated_set

CPU = torch.device("cpu")


def never(*arguments: object) -> torch.Tensor:
    raise AssertionError("worked out again")


def test_it_is_kept_to_the_last_bit_once_it_is_saved(tmp_path: Path) -> None:
    first, value = Remembered(tmp_path), torch.tensor([1 / 3, 1e-7])
    first.put("a", value)
    assert Remembered(tmp_path).get("a") is None and first.get("a") is not None
    first.save()
    again = Remembered(tmp_path).get("a")
    assert again is not None and torch.equal(again, value) and first.get("b") is None


def test_metrics_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rated, encoder, versions = rated_set(), ImageEncoder(SECTION), np.full(10, 3)

    def measured(key: tuple[int | str, ...]) -> torch.Tensor:
        images = rated.pixels, rated.image_group, versions, encoder, key, CPU
        return MeasuredImages(*images, Remembered(tmp_path)).metrics

    first = measured(KEY)
    other = measured((1, "other versions"))
    assert torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    monkeypatch.setattr("medsyn.models.image_encoder.quality_features", never)
    assert torch.equal(measured(KEY), first)


def test_strengths_of_damage_are_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 1, 32, 32), generator=generator, dtype=torch.uint8).expand(-1, 3, -1, -1)

    def made(remembered: Remembered | None) -> tuple[torch.Tensor, np.ndarray]:
        found = degraded_comparisons(pixels, ["CT"] * 2, ["a", "b"], ["a", "b"], 0, 3, remembered=remembered)
        if remembered is not None:
            remembered.save()
        return found.pixels, found.worse

    plain, first = made(None), made(Remembered(tmp_path))
    monkeypatch.setattr(graded, "_search", never)
    again = made(Remembered(tmp_path))
    for one in (first, again):
        assert torch.equal(one[0], plain[0]) and np.array_equal(one[1], plain[1])
