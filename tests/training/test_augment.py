from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsyn.config import AugmentSection
from medsyn.training.finetune.augment import names_a_side, versions


def section(**values: object) -> AugmentSection:
    return AugmentSection.model_validate({"versions": 4, **values})


def image(pixels: int = 32) -> Tensor:
    """A bright disc to the left of the middle on a dark ground, and a brighter spot above it."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, pixels), torch.linspace(-1, 1, pixels), indexing="ij")
    made = 0.1 + 0.5 * (((x + 0.4) ** 2 + y**2) < 0.15) + 0.3 * (((x + 0.4) ** 2 + (y + 0.5) ** 2) < 0.02)
    return made.float().expand(1, 3, pixels, pixels).contiguous()


def test_the_first_version_is_the_image_and_all_follow_from_seed_and_pixels() -> None:
    first, again, other = (versions(section(), image(), seed) for seed in (0, 0, 1))
    assert len(first) == 4 and torch.equal(first[0], image())
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first[1:], other[1:], strict=True))
    more = versions(section(versions=6), image(), 0)
    assert all(torch.equal(one, two) for one, two in zip(first, more, strict=False)), "more versions change none"
    for one in first:
        assert one.shape == image().shape and one.min() >= 0 and one.max() <= 1


def centre(pixels: Tensor) -> tuple[float, float]:
    """(x, y) of the brightness above the ground, from -1 to 1."""
    bright = (pixels[0, 0] - pixels[0, 0].median()).clamp(min=0)
    places = torch.linspace(-1, 1, bright.shape[0])
    return float((bright.sum(0) * places).sum() / bright.sum()), float((bright.sum(1) * places).sum() / bright.sum())


def test_what_is_on_the_left_stays_there_and_is_about_as_bright() -> None:
    x, y = centre(image())
    for made in versions(section(versions=16), image(), 3)[1:]:
        assert not torch.equal(made, image())
        moved_x, moved_y = centre(made)
        assert moved_x < -0.2, "nothing is mirrored"
        assert abs(moved_x - x) < 0.1 and abs(moved_y - y) < 0.1
        assert abs(float(made.mean() - image().mean())) < 0.05


@pytest.mark.parametrize("only", ["rotation", "zoom", "contrast"])
def test_each_of_them_can_be_alone_and_none_changes_nothing(only: str) -> None:
    none = {"rotation": 0.0, "zoom": 0.0, "contrast": 0.0}
    assert all(torch.allclose(made, image(), atol=1e-5) for made in versions(section(**none), image(), 0))
    changed = versions(section(**(none | {only: 20.0 if only == "rotation" else 0.3})), image(), 0)[1:]
    assert all((made - image()).abs().max() > 0.005 for made in changed)
    if only == "contrast":
        assert all(torch.allclose(made.mean(), image().mean(), atol=0.02) for made in changed)


def test_mirrored_versions_come_last() -> None:
    made = versions(section(mirror=True), image(), 0)
    assert len(made) == 8 == section(mirror=True).encoded
    for plain, mirrored in zip(made[:4], made[4:], strict=True):
        assert torch.equal(plain.flip(-1), mirrored)


@pytest.mark.parametrize(
    ("caption", "side"),
    [
        ("Chest X-ray: nodule, left lung", True),
        ("Fundus OD, drusen", True),
        ("CT: Läsion im rechten Oberlappen", True),
        ("IRM : lésion frontale gauche", True),
        ("右肺結節", True),
        ("L. pleural effusion", True),
        ("Bilateral infiltrates", True),
        ("OCT: macular hole", False),
        ("Axial CT, normal liver", False),
        ("MRI: alright, no lesion", False),
    ],
)
def test_captions_that_name_a_side(caption: str, side: bool) -> None:
    assert names_a_side(caption) == side
