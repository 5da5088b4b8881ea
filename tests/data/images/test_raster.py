"""PNG and JPEG: every bit depth and mode, alpha, orientation, damage and bombs."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import PngImagePlugin

from medsyn.data.images.pixels import MAX_PIXELS
from medsyn.data.images.read import SYNTHETIC_KEY, read_image
from medsyn.errors import InputError

GREY = np.linspace(0, 255, 32 * 48).reshape(32, 48).astype(np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows_of(values: np.ndarray, dtype: str) -> bytes:
    return b"".join(b"\0" + row.astype(dtype).tobytes() for row in values)


# --- bit depths and modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0.001), ("jpg", 0.03)])
def test_grey_stays_one_channel_and_colour_three(tmp_path: Path, suffix: str, tolerance: float) -> None:
    for values, channels in ((GREY, 1), (COLOUR, 3)):
        PillowImage.fromarray(values).save(tmp_path / f"a.{suffix}", quality=100, subsampling=0)
        pixels = read_image(tmp_path / f"a.{suffix}").pixels
        assert pixels.shape == (32, 48, channels)
        assert np.abs(pixels.squeeze() - values / 255).mean() < tolerance


@pytest.mark.parametrize("highest", [65535, 4095, 102])
@pytest.mark.parametrize("marker", [0, 65535])
def test_sixteen_bits_are_scaled_by_their_own_percentiles(tmp_path: Path, highest: int, marker: int) -> None:
    """A burned-in marker or a dead pixel does not make the rest black."""
    values = np.linspace(0, highest, 32 * 48).reshape(32, 48).astype(np.uint16)
    values[0, :7] = marker
    PillowImage.fromarray(values).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    low, high = np.percentile(values, [0.5, 99.5])
    np.testing.assert_allclose(image.pixels[..., 0], np.clip((values - low) / (high - low), 0, 1), atol=1e-6)
    assert f"scale: percentiles 0.5 to 99.5, {low:g} to {high:g}" in image.steps
    assert abs(image.pixels.mean() - 0.5) < 0.02


def test_sixteen_bit_colour_of_low_range_is_not_nearly_black(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(48, 32, 16, 2, rows_of(COLOUR.reshape(32, -1).astype(np.uint16) * 16, ">u2")))
    image = read_image(tmp_path / "a.png")
    assert image.pixels.shape == (32, 48, 3)
    assert image.pixels.max() == 1
    assert "16-bit colour" in image.warnings[0]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_use_the_whole_range(tmp_path: Path, depth: int) -> None:
    rows = np.tile(np.array([[0x00, 0xFF, 0x55, 0xAA]]), (16, 4))
    (tmp_path / "a.png").write_bytes(png(16 * 8 // depth, 16, depth, 0, rows_of(rows, "u1")))
    pixels = read_image(tmp_path / "a.png").pixels
    assert pixels.min() == 0 and pixels.max() == 1


def test_palettes_become_colours(tmp_path: Path) -> None:
    PillowImage.fromarray(COLOUR).quantize(64).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png").pixels
    assert np.abs(pixels - COLOUR / 255).mean() < 0.1


def test_cmyk_is_not_inverted(tmp_path: Path) -> None:
    PillowImage.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").pixels - COLOUR / 255).mean() < 0.05


# --- alpha: one rule ------------------------------------------------------------------------------------------------


def test_alpha_is_composited_on_black_and_hidden_pixels_do_not_leak(tmp_path: Path) -> None:
    alpha = np.full_like(GREY, 255)
    alpha[:, :24] = 0
    alpha[:, 24:30] = 128
    expected = alpha / 255
    PillowImage.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "rgba.png")
    PillowImage.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "la.png")
    rgba, la = read_image(tmp_path / "rgba.png").pixels, read_image(tmp_path / "la.png").pixels
    assert rgba.shape[2] == 3 and la.shape[2] == 1
    np.testing.assert_allclose(rgba, COLOUR / 255 * expected[..., None], atol=0.005)
    np.testing.assert_allclose(la[..., 0], GREY / 255 * expected, atol=0.005)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_colour_is_black(tmp_path: Path, mode: str) -> None:
    values = np.full((32, 32, 3), 200, np.uint8)
    values[8:24, 8:24] = 90
    picture = PillowImage.fromarray(values)
    if mode == "P":
        picture = picture.quantize(2)
        transparent: int | tuple[int, int, int] = picture.getpixel((0, 0))
    else:
        picture = picture.convert(mode)
        transparent = 200 if mode == "L" else (200, 200, 200)
    picture.save(tmp_path / "a.png", transparency=transparent)
    pixels = read_image(tmp_path / "a.png").pixels
    assert pixels.shape[2] == (1 if mode == "L" else 3)
    assert pixels[0, 0].max() == 0
    np.testing.assert_allclose(pixels[16, 16], 90 / 255, atol=0.02)


# --- orientation, marks, several frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, GREY),
        (2, GREY[:, ::-1]),
        (3, GREY[::-1, ::-1]),
        (4, GREY[::-1]),
        (5, GREY.T),
        (6, GREY[::-1].T),
        (7, GREY[::-1, ::-1].T),
        (8, GREY.T[::-1]),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, expected: np.ndarray) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png"):
        PillowImage.fromarray(GREY).save(tmp_path / name, exif=exif, quality=100)
        image = read_image(tmp_path / name)
        assert image.pixels.shape[:2] == expected.shape
        assert np.abs(image.pixels[..., 0] - expected / 255).max() < 0.03
        assert any("EXIF" in step for step in image.steps) == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_an_orientation_that_turns_nothing_is_no_step(tmp_path: Path, orientation: int) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    PillowImage.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").steps == ("decode: JPEG, mode L, 48 x 32",)


def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    PillowImage.fromarray(GREY).save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage", quality=95)
    assert read_image(tmp_path / "a.jpg").pixels.shape == (32, 48, 1)


@pytest.mark.parametrize(("value", "synthetic"), [("YES", True), ("NO", False), ("yes", False), (None, False)])
def test_the_mark_of_a_generated_image_is_read(tmp_path: Path, value: str | None, synthetic: bool) -> None:
    text = PngImagePlugin.PngInfo()
    if value is not None:
        text.add_text(SYNTHETIC_KEY, value)
    PillowImage.fromarray(GREY).save(tmp_path / "a.png", pnginfo=text)
    assert read_image(tmp_path / "a.png").synthetic is synthetic


def test_the_mark_is_read_behind_the_pixels_too(tmp_path: Path) -> None:
    content = png(48, 32, 8, 0, rows_of(GREY, "u1"))
    end = chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content.removesuffix(end) + chunk(b"tEXt", b"Synthetic\0YES") + end)
    assert read_image(tmp_path / "a.png").synthetic


COMFY = '{"3": {"class_type": "KSampler", "inputs": {}}}'


@pytest.mark.parametrize(
    ("key", "value", "synthetic"),
    [
        ("parameters", "CT: chest\nSteps: 20, Sampler: Euler a", True),
        ("parameters", "kVp 120, mAs 80", False),
        ("prompt", COMFY, True),
        ("prompt", "press the button", False),
        ("workflow", '{"nodes": []}', True),
        ("invokeai_metadata", "{}", True),
        ("sd-metadata", "{}", True),
        ("Software", "NovelAI", True),
        ("Software", "GIMP 2.10", False),
        ("XML:com.adobe.xmp", "<x>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia</x>", True),
    ],
)
def test_texts_of_other_generators_are_marks(tmp_path: Path, key: str, value: str, synthetic: bool) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt(key, value) if key.startswith("XML") else text.add_text(key, value)
    PillowImage.fromarray(GREY).save(tmp_path / "a.png", pnginfo=text)
    image = read_image(tmp_path / "a.png")
    assert image.synthetic is synthetic
    assert (repr(key) in image.mark) == (synthetic and not key.startswith("XML"))


@pytest.mark.parametrize(
    ("comment", "software", "mark"),
    [
        (b"UNICODE\0" + "CT\nSteps: 20, Sampler: Euler".encode("utf-16-be"), "", "EXIF UserComment"),
        (b"ASCII\0\0\0CT\nSteps: 20, Sampler: Euler", "", "EXIF UserComment"),
        (b"ASCII\0\0\0left eye", "Stable Diffusion web UI", "EXIF Software"),
        (b"ASCII\0\0\0left eye", "Fundus camera 3.1", ""),
    ],
)
def test_exif_of_other_generators_is_a_mark(tmp_path: Path, comment: bytes, software: str, mark: str) -> None:
    exif = PillowImage.Exif()
    exif[0x0131] = software
    exif.get_ifd(0x8769)[0x9286] = comment
    PillowImage.fromarray(COLOUR).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").mark == mark


def test_a_mask_is_told(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        PillowImage.fromarray((GREY // 64).astype(dtype) * 80).save(tmp_path / "a.png")
        assert "only 4 different values: is it a mask" in read_image(tmp_path / "a.png").warnings[0]
    PillowImage.fromarray(GREY // 15).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").warnings == ()


def test_several_pictures_in_one_file_give_the_first(tmp_path: Path) -> None:
    first, second = PillowImage.fromarray(COLOUR), PillowImage.fromarray(255 - COLOUR)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    animated = read_image(tmp_path / "a.png")
    assert "animated" in animated.warnings[0]
    np.testing.assert_allclose(animated.pixels, COLOUR / 255, atol=0.01)
    assert np.abs(read_image(tmp_path / "a.jpg").pixels - COLOUR / 255).mean() < 0.1


# --- damage and bombs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 7, 255])
def test_blank_pictures_are_refused(tmp_path: Path, value: int) -> None:
    PillowImage.fromarray(np.full((32, 32), value, np.uint8)).save(tmp_path / "a.png")
    PillowImage.fromarray(np.full((32, 32), value * 100, np.uint16)).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match="is blank"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(("rows", "columns", "reason"), [(1, 1, "side"), (15, 99, "side"), (16, 129, "8 times")])
def test_shapes_of_no_image_are_refused(tmp_path: Path, rows: int, columns: int, reason: str) -> None:
    PillowImage.fromarray(np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=reason):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 12_000, 60_000])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_header_of_too_many_pixels_is_refused_before_decoding(tmp_path: Path, side: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(png(side, side, 8, 2, b"\0"))
    else:
        PillowImage.fromarray(GREY).save(path)
        content = path.read_bytes()
        frame = content.index(b"\xff\xc0") + 5
        path.write_bytes(content[:frame] + struct.pack(">HH", side, side) + content[frame + 4 :])
    with pytest.raises(InputError, match=f"{MAX_PIXELS:,}"):
        read_image(path)


def test_a_text_chunk_bomb_is_refused(tmp_path: Path) -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 50_000_000))
    (tmp_path / "a.png").write_bytes(png(48, 32, 8, 0, rows_of(GREY, "u1"), bomb))
    with pytest.raises(InputError):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    PillowImage.fromarray(noise).save(path)
    content = path.read_bytes()
    end = len(content) - 16  # the last bytes only say that this is the end
    for length in range(0, end, end // 60):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_flipped_bits_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    PillowImage.fromarray(COLOUR).save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(8, len(content), size=3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            pixels = read_image(path).pixels
        except InputError:
            continue
        assert np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1
