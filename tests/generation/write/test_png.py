from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medsyn import __version__
from medsyn.data.images.read import read_image
from medsyn.generation import filter as rules
from medsyn.generation.block_store import Item
from medsyn.generation.filter import Candidate, Rule, Trial
from medsyn.generation.write.png import encode_png, file_name, publish, quantise

FACTS = {"modality": "CT", "mode": "filtered", "model_fingerprint": "aa", "config_fingerprint": "bb"}
SETTINGS = {"num_inference_steps": 25, "guidance_scale": 7.5, "negative_prompt": ""}
ITEM = Item("ct-7", "CT: Lungenrundherd, 5 µm, 胸部 ☂", 2)


def trial(selector: float = 0.75, on_exhausted: str = "skip") -> Trial:
    made = Trial(Rule(1, 1, 0.6, None, on_exhausted))  # type: ignore[arg-type]
    made.add(Candidate(0, 2**62 + 1, True, selector, 0.5))
    return made


def picture(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (20, 24, channels), dtype=np.uint8)


def text_of(png: bytes) -> dict[str, str]:
    return dict(Image.open(io.BytesIO(png)).text)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_file_holds_the_pixels_and_says_that_it_is_synthetic(tmp_path: Path, channels: int, mode: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode_png(picture(channels), {}))
    with Image.open(path) as image:
        assert image.mode == mode and image.size == (24, 20)
    read = read_image(path)
    assert read.synthetic, "the project's own reader sees the mark"
    assert np.array_equal(np.rint(read.pixels * 255).astype(np.uint8), picture(channels))


def test_the_mark_notice_and_version_are_in_every_file() -> None:
    text = text_of(encode_png(picture(), {"Seed": 5, "Scorers": None}))
    assert text["Synthetic"] == "YES"
    assert "not for diagnosis" in text["Notice"].lower()
    assert text["Software"] == f"medsyn {__version__}"
    assert text["Seed"] == "5" and "Scorers" not in text


def test_the_files_bytes_are_those_that_pillow_writes_with_these_texts() -> None:
    texts = {"Seed": 2**62, "Prompt": "Fundus: \u00e9, 5 \u00b5m", "Note": "\u80f8\u90e8 \u2602"}
    info, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in {**text_of(encode_png(picture(3), {})), **texts}.items():
        info.add_text(key, str(value))
    Image.fromarray(picture(3)).save(stream, format="PNG", pnginfo=info, compress_type=zlib.Z_RLE)
    assert encode_png(picture(3), texts) == stream.getvalue()


def test_an_accepted_image_says_how_it_was_made() -> None:
    record, png = publish(ITEM, trial(), picture(), FACTS, SETTINGS)
    assert png is not None
    text = text_of(png)
    assert text["Prompt"] == ITEM.prompt, "letters beyond Latin-1 too"
    assert (text["Id"], text["Replicate"], text["Modality"], text["Mode"]) == ("ct-7", "2", "CT", "filtered")
    assert (text["Seed"], text["Attempt"], text["Selector"], text["Policy"]) == (str(2**62 + 1), "0", "0.75", "0.5")
    assert (text["Model fingerprint"], text["Config fingerprint"]) == ("aa", "bb")
    assert (text["Accepted"], text["Reason"]) == ("True", rules.ACCEPTED)
    assert record["file"] == "ct-7_2.png" == file_name(ITEM)
    assert record["bytes"] == len(png) and record["sha256"] == hashlib.sha256(png).hexdigest()
    assert (record["width"], record["height"]) == (24, 20)


def test_a_kept_best_says_in_the_file_that_it_was_not_accepted() -> None:
    record, png = publish(ITEM, trial(0.1, "keep-best"), picture(), FACTS, SETTINGS)
    assert png is not None and record["accepted"] is False
    assert (text_of(png)["Accepted"], text_of(png)["Reason"]) == ("False", rules.KEPT_BEST)


@pytest.mark.parametrize("on_exhausted", ["skip", "fail"])
def test_an_item_without_an_image_has_a_record_with_the_same_keys(on_exhausted: str) -> None:
    record, png = publish(ITEM, trial(0.1, on_exhausted), picture(), FACTS, SETTINGS)
    with_image, _ = publish(ITEM, trial(), picture(), FACTS, SETTINGS)
    assert png is None and record["file"] is None and record["seed"] is None and record["accepted"] is False
    assert list(record) == list(with_image)


def test_the_manifest_has_the_keys_that_readers_rely_on() -> None:
    record, _ = publish(ITEM, trial(), picture(), FACTS, SETTINGS)
    promised = "id prompt modality mode replicate accepted reason attempt attempts seed selector policy file sha256"
    assert set(record) >= {*promised.split(), "width", "height", "model_fingerprint", "config_fingerprint"}


def test_the_bytes_are_a_function_of_pixels_and_facts() -> None:
    assert encode_png(picture(), {"Seed": 1}) == encode_png(picture(), {"Seed": 1})
    assert encode_png(picture(), {"Seed": 1}) != encode_png(picture(), {"Seed": 2})
    kinds, png, position = [], encode_png(picture(), {"Prompt": "胸"}), 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kinds.append(png[position + 4 : position + 8].decode())
        position += 12 + length
    assert set(kinds) == {"IHDR", "tEXt", "iTXt", "IDAT", "IEND"}, "no time chunk, nothing else"


def test_grey_for_grey_modalities_colour_for_fundus() -> None:
    pixels = np.zeros((2, 2, 3), np.float32)
    pixels[..., 0] = 0.9
    for modality in ("Fundus", "Retinal Fundus"):
        assert quantise(pixels, modality).shape == (2, 2, 3)
    for modality in ("OCT", "CT", "X-Ray", "MRI", "Brain MRI", "Chest X-Ray"):
        grey = quantise(pixels, modality)
        assert grey.shape == (2, 2, 1) and grey.dtype == np.uint8 and (grey == round(0.3 * 255)).all()


def test_quantising_rounds_and_clips() -> None:
    pixels = np.array([-1.0, 0.4999 / 255, 0.501 / 255, 254.6 / 255, 7.0], np.float32)[None, :, None].repeat(3, 2)
    assert quantise(pixels, "Fundus")[0, :, 0].tolist() == [0, 0, 1, 255, 255]
