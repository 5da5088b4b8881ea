"""Which real images are beside the candidates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from medsyn.data.images.latent_cache import TensorCache
from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.stage import Control
from medsyn.training.alignment import real_images
from medsyn.training.alignment.real_images import Asking, accepted, by_lot, rated_good
from tests.training.alignment.conftest import config_of, picture


def rating(row: int, file: str, value: int) -> RatingRow:
    return RatingRow(row, file, Path("/data") / file, value, "CT", 3, f"CT: {file}")


def test_an_image_is_well_rated_if_nobody_called_it_poor() -> None:
    rows = [rating(2, "a", 3), rating(3, "b", 3), rating(4, "a", 2), rating(5, "b", 1), rating(6, "c", 1)]
    assert [(row.row, row.file, row.text) for row in rated_good(rows)] == [(2, "a", "CT: a")]


def test_the_lot_takes_no_more_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_images, "MOST", 3)
    rows = [ImageRow(k, f"{k}", Path(f"/{k}"), "CT: x", "CT", None) for k in range(2, 12)]
    drawn = by_lot(rows, 0)
    assert len(drawn) == 3
    assert drawn == by_lot(rows[::-1], 0)
    assert [row.row for row in drawn] == sorted(row.row for row in drawn)


@pytest.mark.parametrize(
    ("fit", "passed"),
    [
        ([0.9, 0.2, 0.9, 0.6], [0, 3]),  # the third is of poor quality, the second's caption is wrong
        ([0.1, 0.2, 0.3, 0.4], [1, 3]),  # whatever a Policy's scores are like: the better half
    ],
)
def test_captions_that_do_not_fit_are_left_out_as_poor_images_are(
    fit: list[float], passed: list[int], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(picture(number, 3)).save(path)
        rows.append(ImageRow(number + 2, path.name, path, f"CT: {number}", "CT", None))
    asked: list[str] = []

    def scores(scorers: Any, system: Any, modality: str, texts: list[str], pictures: torch.Tensor) -> torch.Tensor:
        asked.extend(texts)
        assert pictures.dtype == torch.uint8
        quality = [0.1 if number == 2 else 0.9 for number in range(4)]
        return torch.tensor([[one, 0.0, two, 0.0] for one, two in zip(quality, fit, strict=True)])

    monkeypatch.setattr(real_images, "scores_of", scores)
    hashes = {row.path: hashlib.sha256(row.path.read_bytes()).hexdigest() for row in rows}
    cache = TensorCache(tmp_path / "cache", None)
    asking = Asking(config_of(data), hashes, lambda: None, lambda: None, "one", 0.5, cache, Control())  # type: ignore[arg-type, return-value]
    for _ in range(2):  # the second time nothing is scored
        assert [row.row - 2 for row in accepted(asking, rows)] == passed
    assert len(asked) == 4
