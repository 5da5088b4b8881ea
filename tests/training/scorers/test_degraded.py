"""Comparisons of good images with damage of themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medsyn.data.degradations.graded import amount
from medsyn.data.degradations.kinds import DEGRADATIONS, family_of
from medsyn.data.phantoms.phantom import KINDS, MODALITY_OF, draw_phantom, draw_values
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.degraded import degraded_comparisons

SIDE = 32


def pictures(count: int = len(KINDS)) -> Tensor:
    drawn = [draw_values(draw_phantom(KINDS[n % len(KINDS)], n, 0, quality=3), SIDE) for n in range(count)]
    tensors = [torch.from_numpy(one).permute(2, 0, 1).expand(3, -1, -1).clamp(0, 1) for one in drawn]
    return (torch.stack(tensors) * 255).round().to(torch.uint8)


MODALITIES = [MODALITY_OF[kind] for kind in KINDS]


def made(numbers: list[int] | None = None, **changes) -> Comparisons:
    numbers = list(range(len(KINDS))) if numbers is None else numbers
    pixels = pictures()[numbers]
    keys = [f"hash-{number}" for number in numbers]
    modality = [MODALITIES[number] for number in numbers]
    return degraded_comparisons(
        pixels, modality, [f"patient-{n}" for n in numbers], keys, **{"campaign_seed": 1, "per_image": 4, **changes}
    )


def of_group(made: Comparisons, group: str) -> list[tuple[bytes, bytes, str]]:
    mine = made.group[made.better] == group
    rows = zip(made.better[mine], made.worse[mine], made.kind[mine], strict=True)
    return [(made.pixels[b].numpy().tobytes(), made.pixels[w].numpy().tobytes(), str(kind)) for b, w, kind in rows]


def test_clean_is_better_than_mild_and_mild_than_severe() -> None:
    pairs = made()
    assert torch.equal(pairs.pixels[: len(KINDS)], pictures())
    harmless = pairs.pixels[len(KINDS) : 2 * len(KINDS)].float()
    assert 0 < (harmless - pictures().float()).abs().flatten(1).mean(dim=1).max() < 15
    assert len(pairs.kind) > 8 * len(KINDS)  # 4 kinds, up to three pairs each
    worse_of = {(int(b), int(w)) for b, w in zip(pairs.better, pairs.worse, strict=True)}
    mild = {w for b, w in worse_of if any(b2 == w for b2, _ in worse_of)}
    for better, worse in worse_of:
        clean = next(n for n in range(len(KINDS)) if pairs.group[n] == pairs.group[worse])
        before = pairs.pixels[clean].float() / 255
        assert better < 2 * len(KINDS) or better in mild
        amounts = [amount(before, pairs.pixels[n].float() / 255) for n in (better, worse)]
        assert better < 2 * len(KINDS) or amounts[0] < amounts[1]
    assert pairs.severe.any() and not pairs.severe.all()
    assert pairs.weight.dtype == np.float32 and pairs.weight.mean() == 1


def test_pairs_stay_in_their_group_and_modality() -> None:
    pairs = made()
    assert (pairs.group[pairs.better] == pairs.group[pairs.worse]).all()
    assert (pairs.modality[pairs.better] == pairs.modality[pairs.worse]).all()
    for number, kind in zip(pairs.better, pairs.kind, strict=True):
        assert pairs.modality[number] in DEGRADATIONS[kind].modalities


def test_an_images_pairs_do_not_depend_on_its_company() -> None:
    together, alone = made(), made([2])
    assert of_group(together, "patient-2") == of_group(alone, "patient-2") != []
    assert of_group(made([2], campaign_seed=2), "patient-2") != of_group(alone, "patient-2")


def test_kinds_of_an_image_are_of_different_families() -> None:
    pairs = made(per_image=99)
    for number in range(len(KINDS)):
        kinds = sorted({str(kind) for kind in pairs.kind[pairs.group[pairs.better] == f"patient-{number}"]})
        families = [family_of(kind) for kind in kinds]
        assert len(families) == len(set(families)) >= 8


def test_only_the_kinds_that_were_asked_for() -> None:
    assert set(made(kinds=["blur", "noise"]).kind) == {"blur", "noise"}


@pytest.mark.parametrize("level", [0, 255])
def test_what_a_kind_cannot_change_makes_no_pair(level: int) -> None:
    flat = torch.full((1, 3, SIDE, SIDE), level, dtype=torch.uint8)
    pairs = degraded_comparisons(flat, ["CT"], ["a"], ["a"], 0, 9, kinds=["blur", "motion", "shuffled", "torn"])
    assert len(pairs.kind) == 0 and pairs.better.dtype == np.int64 and len(pairs.pixels) == 2
