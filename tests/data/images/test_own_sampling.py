"""What files of medsyn say of their sampling, and how that differs from what is to be sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsyn.data.images.own_sampling import differences, sampling_of
from medsyn.generation.write.png import encode_png


def write(path: Path, **facts: Any) -> Path:
    """An image of medsyn's own, of these settings."""
    texts = {key.replace("_", " ").capitalize(): value for key, value in facts.items()}
    path.write_bytes(encode_png(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32, 1), texts))
    return path


def test_every_setting_that_some_image_has_is_found_and_real_images_have_none(tmp_path: Path) -> None:
    (tmp_path / "real.jpg").write_bytes(b"no picture")
    files = [
        write(tmp_path / "a.png", scheduler="dpm", num_inference_steps=25, guidance_scale=7.5),
        write(tmp_path / "b.png", scheduler="dpm", num_inference_steps=15, guidance_scale="?"),
        tmp_path / "real.jpg",
        tmp_path / "missing.png",
    ]
    assert sampling_of(files) == {"scheduler": ["dpm"], "num_inference_steps": [15, 25], "guidance_scale": [7.5]}
    assert sampling_of(files[2:]) is None


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (None, []),
        ({"guidance_scale": [7.5, 3.0], "scheduler": ["dpm"]}, []),
        ({"guidance_scale": [7.5, 9.0], "scheduler": ["dpm"]}, ["guidance_scale 3.0 (seen: 7.5, 9.0)"]),
        ({"num_inference_steps": [50], "other": [1], "scheduler": []}, ["num_inference_steps 15 (seen: 50)"]),
    ],
)
def test_what_no_image_was_sampled_with_is_a_difference(seen: dict[str, Any] | None, expected: list[str]) -> None:
    here = {"scheduler": "dpm", "num_inference_steps": 15, "guidance_scale": 3.0}
    assert differences(seen, here) == expected
