"""Every kind of damage: none at severity 0, more of the same at a higher one, and as much as every other kind."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from medsyn.data.degradations.graded import FULL, amount, changed, degrade
from medsyn.data.degradations.kinds import DEGRADATIONS, kinds_of
from medsyn.data.phantoms.phantom import draw_phantom, draw_values
from medsyn.modality_names import MODALITIES


@lru_cache
def picture(kind: str = "Chest X-ray", size: int = 48) -> Tensor:
    """[3, size, size]."""
    drawn = torch.from_numpy(draw_values(draw_phantom(kind, 1, 0, quality=3), size))
    return drawn.clamp(0, 1).permute(2, 0, 1).expand(3, -1, -1).contiguous()


def damaged(kind: str, severity: float, image: Tensor | None = None, seed: int = 0) -> Tensor:
    image = picture() if image is None else image
    return degrade(image, kind, severity, np.random.default_rng(seed), other=image.flip(-1))


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_more_severe_is_more_change_of_the_same(kind: str) -> None:
    image = picture()
    assert torch.equal(damaged(kind, 0.0), image)
    mild, strong = damaged(kind, 0.2), damaged(kind, 0.8)
    differences = [float((after - image).abs().mean()) for after in (mild, strong)]
    assert 0 < differences[0] < differences[1]
    assert 0.01 < amount(image, mild) < 0.8 * amount(image, strong)
    assert torch.equal(mild, damaged(kind, 0.2)), "the same generator, the same damage"
    assert torch.equal(strong[0], strong[1]) and torch.equal(strong[0], strong[2]), "grey stays grey"


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_severity_is_an_amount_of_change(kind: str) -> None:
    """Kinds that move whole patches or lines come only as close as one of these."""
    amounts = [amount(picture(), damaged(kind, 0.4, seed=seed)) / FULL for seed in range(2)]
    assert np.mean(amounts) == pytest.approx(0.4, rel=0.6 if kind in ("shuffled", "torn") else 0.2)


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("shape", [(16, 16), (17, 40)])
def test_any_size_and_values_in_range(kind: str, shape: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(3).random((3, *shape), dtype=np.float32))
    image = (image + picture(size=40)[:, : shape[0], : shape[1]]) / 2
    before = image.clone()
    after = damaged(kind, 0.7, image)
    assert torch.equal(image, before), "the image itself is left alone"
    assert after.shape == image.shape and after.dtype == torch.float32
    assert float(after.min()) >= 0 and float(after.max()) <= 1 and not torch.equal(after, image)


@pytest.mark.parametrize("modality", [*MODALITIES, "Sonogram"])
def test_every_modality_has_kinds_of_many_families(modality: str) -> None:
    kinds = kinds_of(modality)
    assert len({DEGRADATIONS[kind].family for kind in kinds}) >= 10
    assert ("rician_noise" in kinds) == (modality == "MRI")
    assert ("speckle" in kinds) == (modality == "OCT")


def test_a_change_that_nobody_sees_is_none() -> None:
    dark = picture() * 0.02
    assert not changed(dark, damaged("quantisation", 0.0, dark))
    assert not changed(torch.zeros(3, 32, 32), damaged("clipping", 1.0, torch.zeros(3, 32, 32)))
    assert changed(picture(), damaged("noise", 0.05))


@pytest.mark.parametrize(("kind", "severity", "said"), [("noise", 1.5, "between 0 and 1"), ("stitched", 0.5, "other")])
def test_misuse_is_refused(kind: str, severity: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        degrade(picture(), kind, severity, np.random.default_rng(0))
