"""Image backbones by path, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from medsyn.errors import InputError
from medsyn.models.backbone import Backbone

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}


def write(kind: str, directory: Path) -> Path:
    if kind == "clip":
        text = {**SIZES, "vocab_size": 30}
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION))
    elif kind == "clip vision":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    elif kind == "dinov2":
        del (sizes := dict(VISION))["intermediate_size"]
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    elif kind == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
        model = transformers.ResNetModel(transformers.ResNetConfig(**sizes))
    else:
        model = transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=30))
    model.save_pretrained(directory, safe_serialization=True)
    return directory


@pytest.mark.parametrize("kind", ["clip", "clip vision", "dinov2", "resnet"])
def test_features_stay_where_they_are_in_the_image(kind: str, tmp_path: Path) -> None:
    backbone = Backbone(write(kind, tmp_path / "model"))
    pixels = torch.zeros(2, 3, 48, 48)
    pixels[1, :, :12, :12] = 1  # changes the upper left
    seen = backbone.grid(pixels)
    assert seen.shape[:2] == (2, backbone.width) and not seen.requires_grad
    change = (seen[1] - seen[0]).abs().sum(dim=0)
    if kind == "resnet":
        assert float(change[0, 0]) > 0 and float(change[-1, -1]) == 0
    else:  # everything changes a little
        assert change.argmax() == 0


def test_equal_pixels_are_looked_at_once(tmp_path: Path) -> None:
    backbone = Backbone(write("clip vision", tmp_path / "model"))
    pixels = torch.rand(1, 3, 32, 32)
    assert backbone.grid(pixels) is backbone.grid(pixels)
    assert backbone.grid(pixels.clone()) is not backbone.grid(pixels)


def test_pixels_are_normalised_as_the_directory_says(tmp_path: Path) -> None:
    plain = Backbone(write("clip vision", tmp_path / "model"))
    pixels = torch.rand(1, 3, 32, 32)
    before = plain.grid(pixels)
    (tmp_path / "model" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0] * 3, "image_std": [2] * 3})
    )
    assert not torch.equal(Backbone(tmp_path / "model").grid(pixels), before)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "is not a directory"),
        ("empty", "has no config.json"),
        ("pickle", "has no model.safetensors; save the model with safe_serialization=True"),
        ("torn", "is not a model that AutoModel can load"),
        ("text", "is not a model of images"),
    ],
)
def test_what_is_no_backbone_says_why(kind: str, reason: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    if kind == "empty":
        directory.mkdir()
    elif kind != "missing":
        write("text" if kind == "text" else "clip vision", directory)
    if kind == "pickle":
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    if kind == "torn":
        (directory / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match=reason):
        Backbone(directory)
