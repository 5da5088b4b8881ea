"""Rows to entries of the cache: what is an image of its own, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import PngImagePlugin
from torch import Tensor

from medsyn.data.images.latent_cache import TensorCache
from medsyn.data.tables.read import ImageRow
from medsyn.errors import InputProblems
from medsyn.stage import Control
from medsyn.training import encode_rows


def encode(
    tmp_path: Path, rows: list[ImageRow], monkeypatch: pytest.MonkeyPatch, threads: int = 1
) -> tuple[list[Any], int]:
    """Rows with their mean brightness as the entry."""

    def mean(image: Any, pixels: Tensor) -> dict[str, Tensor]:
        return {"mean": pixels.mean(dim=(2, 3))}

    monkeypatch.setattr(encode_rows, "weights_fingerprint", lambda path: "weights")
    config: Any = SimpleNamespace(
        data=SimpleNamespace(resolution=16, strict=True),
        model_paths=SimpleNamespace(stable_diffusion="x"),
        device=SimpleNamespace(cpu_threads=threads),
    )
    cache, hashes = TensorCache(tmp_path / "cache"), {row.path: row.path.name for row in rows}
    keyed, encoded = encode_rows.encode_rows(config, "table", rows, hashes, mean, cache, Control(), False)
    return [round(float(cache.read(key, "mean")[0, 0]), 2) for key, _ in keyed], encoded


def test_each_volume_of_a_file_has_its_own_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.broadcast_to(np.arange(16.0)[:, None, None], (16, 16, 3))
    volumes = np.stack([ramp, ramp**4], axis=3).astype(np.float32)
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(volumes, np.eye(4)), path)
    rows = [ImageRow(line, "a.nii", path, "MRI: x", "MRI", None, volume) for line, volume in ((2, 1), (3, 2), (4, 1))]
    means, encoded = encode(tmp_path, rows, monkeypatch)
    assert encoded == 2
    assert means[0] == means[2] == 0.5 and means[1] < 0.3


def test_the_mark_of_a_refused_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "NovelAI")
    PillowImage.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png", pnginfo=text)
    row = ImageRow(2, "a.png", tmp_path / "a.png", "CT: x", "CT", None)
    with pytest.raises(InputProblems, match=r"a\.png: is marked as generated \(PNG text 'Software'\)"):
        encode(tmp_path, [row], monkeypatch)


def test_images_are_read_beside_the_encoder_and_their_order_is_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all threads reading and the encoder waiting for the first image, the others are read."""
    rows = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        PillowImage.fromarray(np.linspace(0, 40 * number + 9, 256).reshape(16, 16).astype(np.uint8)).save(path)
        rows.append(ImageRow(number + 2, path.name, path, "CT: x", "CT", None))
    others, read = threading.Event(), encode_rows.read_image

    def reading(path: Path, *arguments: Any) -> Any:
        if path.name == "0.png":
            assert others.wait(30), "nothing was read meanwhile"
        if path.name == "2.png":
            others.set()
        return read(path, *arguments)

    monkeypatch.setattr(encode_rows, "read_image", reading)
    means, encoded = encode(tmp_path / "parallel", rows, monkeypatch, threads=2)
    monkeypatch.setattr(encode_rows, "read_image", read)
    assert encoded == len(rows)
    assert means == encode(tmp_path / "serial", rows, monkeypatch)[0]
    assert files(tmp_path / "parallel") == files(tmp_path / "serial"), "the shards' names are hashes of their bytes"


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*.safetensors"))
