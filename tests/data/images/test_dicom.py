"""DICOM: what the values mean, which frame is taken, what is refused, and that no patient is ever named."""

from __future__ import annotations

import io
import logging
import tracemalloc
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_voi
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
    RTDoseStorage,
    SegmentationStorage,
    generate_uid,
)

import medsyn.data.images.dicom as reader
import medsyn.data.images.dicom_frames as frame_reader
from medsyn.data.images.pixels import MAX_INFLATED_BYTES
from medsyn.data.images.read import Image, read_image
from medsyn.errors import InputError

RAMP = np.arange(4096).reshape(64, 64)  # stored values of 12 bits
PATIENT = "Doe^Jane"


def make(stored: np.ndarray = RAMP, bits: int = 12, **elements: Any) -> Dataset:
    """A data set of unsigned stored values [rows, columns], [frames, rows, columns] or [rows, columns, 3]."""
    colour = stored.ndim == 3 and stored.shape[2] == 3
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, generate_uid(entropy_srcs=["test"])
    data.Modality, data.PatientName, data.PatientID = "MR", PATIENT, "MRN-0042"
    data.Rows, data.Columns = stored.shape[:2] if colour else stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        data.PlanarConfiguration = 0
    elif stored.ndim == 3:
        data.NumberOfFrames = stored.shape[0]
    data.BitsAllocated = 8 if bits <= 8 else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, 0
    data.PixelData = stored.astype("u1" if bits <= 8 else "<u2").tobytes()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def write(path: Path, data: Dataset) -> Path:
    data.save_as(path, enforce_file_format=True)
    return path


def read(tmp_path: Path, data: Dataset, modality: str | None = None) -> Image:
    return read_image(write(tmp_path / "a.dcm", data), modality)


def ct(**elements: Any) -> Dataset:
    return make(
        **{"SOPClassUID": CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024, **elements}
    )


def table(first: int, bits: int, entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return item


# --- from stored values to grey levels ------------------------------------------------------------------------------


def test_ct_without_a_window_shows_soft_tissue_in_all_its_grey_levels(tmp_path: Path) -> None:
    image = read(tmp_path, ct())
    hounsfield = RAMP - 1024
    np.testing.assert_allclose(image.pixels[..., 0], np.clip((hounsfield + 160) / 400, 0, 1), atol=0.003)
    assert len(np.unique(image.pixels)) >= 200
    assert len(np.unique(np.round(image.pixels * 255))) >= 200
    assert image.steps == ("rescale: slope 1, intercept -1024", "window: 40/400, soft tissue, the default for CT")


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_the_header_decides_over_the_table_whether_it_is_ct(tmp_path: Path, modality: str) -> None:
    image = read(tmp_path, ct(), modality)
    assert "soft tissue" in image.steps[-1]
    assert bool(image.warnings) == (modality == "MRI")


def test_the_table_decides_where_the_header_says_nothing(tmp_path: Path) -> None:
    assert "soft tissue" in read(tmp_path, ct(Modality="OT"), "CT").steps[-1]
    assert "percentiles" in read(tmp_path, ct(Modality="OT"), "MRI").steps[-1]


@pytest.mark.parametrize(
    ("centre", "width", "function", "expected"),
    [
        (-600, 1500, None, lambda hu: (hu + 600.5) / 1499 + 0.5),
        ([50, -600], [100, 1500], "LINEAR", lambda hu: (hu - 49.5) / 99 + 0.5),
        (50, 100, "LINEAR_EXACT", lambda hu: (hu - 50) / 100 + 0.5),
        (50, 100, "SIGMOID", lambda hu: 1 / (1 + np.exp(-4 * (hu - 50) / 100))),
    ],
)
def test_the_files_first_window_wins(tmp_path: Path, centre: Any, width: Any, function: Any, expected: Any) -> None:
    elements = {} if function is None else {"VOILUTFunction": function}
    image = read(tmp_path, ct(WindowCenter=centre, WindowWidth=width, **elements))
    hounsfield = (RAMP - 1024).astype(float)
    np.testing.assert_allclose(image.pixels[..., 0], np.clip(expected(hounsfield), 0, 1), atol=1e-4)


@pytest.mark.parametrize("width", [0, -5, None])
def test_a_useless_window_is_ignored(tmp_path: Path, width: float | None) -> None:
    image = read(tmp_path, ct(WindowCenter=40, WindowWidth=width))
    assert "soft tissue" in image.steps[-1]
    assert bool(image.warnings) == (width is not None)


def test_a_window_beside_all_values_is_ignored(tmp_path: Path) -> None:
    image = read(tmp_path, ct(WindowCenter=9000, WindowWidth=100))
    assert "blank" in image.warnings[0]
    assert "percentiles" in image.steps[-1]
    assert len(np.unique(image.pixels)) > 3000


def test_ct_without_rescale_is_not_windowed(tmp_path: Path) -> None:
    data = ct(WindowCenter=40, WindowWidth=400)
    del data.RescaleSlope, data.RescaleIntercept
    image = read(tmp_path, data)
    assert "Hounsfield" in image.warnings[0]
    assert "percentiles" in image.steps[-1]


def test_a_rescale_slope_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rescale slope of 0"):
        read(tmp_path, ct(RescaleSlope=0))


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 40, "WindowWidth": 400}])
def test_monochrome1_is_the_inverse(tmp_path: Path, window: dict[str, Any]) -> None:
    plain = read(tmp_path, ct(**window))
    inverse = read(tmp_path, ct(PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_allclose(inverse.pixels, 1 - plain.pixels, atol=1e-6)
    assert inverse.steps[-1] == "invert: MONOCHROME1"


def test_the_modality_lut_is_applied(tmp_path: Path) -> None:
    entries = np.arange(4096)[::-1] * 16
    image = read(tmp_path, make(ModalityLUTSequence=[table(0, 16, entries)], WindowCenter=32768, WindowWidth=65536))
    np.testing.assert_allclose(image.pixels[..., 0], entries[RAMP] / 65535, atol=1e-4)


@pytest.mark.parametrize("first", [0, 100])
def test_a_voi_lut_of_eight_bits_does_not_wrap_around_at_256(tmp_path: Path, first: int) -> None:
    entries = np.linspace(0, 255, 4096).astype(int)
    data = make(VOILUTSequence=[table(first, 8, entries)], WindowCenter=5, WindowWidth=6)
    image = read(tmp_path, data)
    np.testing.assert_allclose(image.pixels[..., 0], entries[np.clip(RAMP - first, 0, 4095)] / 255, atol=1e-6)
    assert image.steps == ("window: the file's VOI LUT",)
    assert np.abs(apply_voi(RAMP.astype(np.uint16), data) / 255 - image.pixels[..., 0]).max() > 0.5  # why not pydicom's


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_byte_order_counts_for_pixels_and_tables(tmp_path: Path, syntax: Any) -> None:
    entries = np.arange(4096) * 16
    big = syntax == ExplicitVRBigEndian
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "OW", entries.astype(">u2" if big else "<u2").tobytes())
    data = make(VOILUTSequence=[item])
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = RAMP.astype(">u2" if big else "<u2").tobytes()
    data["PixelData"].VR = "OW"
    np.testing.assert_allclose(read(tmp_path, data).pixels[..., 0], RAMP * 16 / 65535, atol=1e-6)


def test_padding_does_not_decide_the_contrast(tmp_path: Path) -> None:
    stored = 2000 + RAMP // 40
    stored[:20] = 63536 - 2**16
    data = make(stored & 0xFFFF, bits=16, PixelRepresentation=1)
    without = read(tmp_path, data)
    data.add_new("PixelPaddingValue", "SS", -2000)
    image = read(tmp_path, data)
    assert without.pixels[32:].std() < 0.02 < 0.2 < image.pixels[32:].std()
    assert image.pixels[:20].max() == 0


def test_a_range_of_padding_values(tmp_path: Path) -> None:
    stored = np.where(RAMP < 1000, RAMP % 11, 2000 + RAMP // 40)
    data = make(stored)
    data.add_new("PixelPaddingValue", "US", 0)
    data.add_new("PixelPaddingRangeLimit", "US", 10)
    low = float(read(tmp_path, data).steps[-1].split(", ")[1].split(" to ")[0])
    assert low >= 2000


def test_nothing_but_padding_is_blank(tmp_path: Path) -> None:
    data = make(RAMP % 2)
    data.add_new("PixelPaddingValue", "US", 0)
    data.add_new("PixelPaddingRangeLimit", "US", 1)
    with pytest.raises(InputError, match="blank"):
        read(tmp_path, data)


def test_eight_bits_are_shown_as_they_are(tmp_path: Path) -> None:
    stored = 50 + RAMP % 100
    for elements in ({}, {"RescaleSlope": 1, "RescaleIntercept": 0}):
        image = read(tmp_path, make(stored, bits=8, Modality="OT", **elements))
        np.testing.assert_allclose(image.pixels[..., 0], stored / 255, atol=1e-6)


def test_eight_bit_captures_of_ct_are_shown_as_they_are(tmp_path: Path) -> None:
    image = read(tmp_path, make(RAMP % 200, bits=8, Modality="CT", WindowCenter=40, WindowWidth=400))
    np.testing.assert_allclose(image.pixels[..., 0], RAMP % 200 / 255, atol=1e-6)


@pytest.mark.parametrize("bits", [0, 99])
def test_a_table_of_impossible_depth_is_refused(tmp_path: Path, bits: int) -> None:
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path, make(VOILUTSequence=[table(0, bits, np.arange(4096))]))


@pytest.mark.parametrize(("centre", "width"), [(1e30, 1), (0, 1e-30), (-1e30, 1e30)])
def test_windows_beyond_all_numbers_leave_no_nan(tmp_path: Path, centre: float, width: float) -> None:
    pixels = read(tmp_path, ct(WindowCenter=str(centre), WindowWidth=str(width))).pixels
    assert np.isfinite(pixels).all() and pixels.min() == 0 and pixels.max() == 1


def test_float_pixels(tmp_path: Path) -> None:
    data = make()
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    values = np.where(RAMP == 0, np.nan, RAMP / 4095).astype("<f4")
    data.BitsAllocated, data.FloatPixelData = 32, values.tobytes()
    image = read(tmp_path, data)
    assert "1 pixels are not finite" in image.warnings[0]
    np.testing.assert_allclose(image.pixels[..., 0], np.clip((RAMP / 4095 - 0.005) / 0.99, 0, 1), atol=0.002)


# --- where the bits are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("shift", [1, 2, 4])
@pytest.mark.parametrize("signed", [0, 1])
def test_the_stored_bits_are_where_high_bit_says(tmp_path: Path, syntax: Any, shift: int, signed: int) -> None:
    values = RAMP - 2048 if signed else RAMP
    plain = read(tmp_path, make(values & 0xFFFF, bits=12, PixelRepresentation=signed))
    data = make(values << shift & 0xFFFF, bits=12, HighBit=11 + shift, PixelRepresentation=signed)
    if syntax == RLELossless:
        data.compress(RLELossless)
    else:
        data.file_meta.TransferSyntaxUID = syntax
    image = read(tmp_path, data)
    np.testing.assert_array_equal(image.pixels, plain.pixels)
    assert image.steps[0] == f"bits: {shift} to {11 + shift} of 16" and not image.warnings


def test_a_stream_of_the_stored_bits_alone_has_them_lowest(tmp_path: Path) -> None:
    data = make()
    data.compress(JPEG2000Lossless)
    data.HighBit = 15
    np.testing.assert_array_equal(read(tmp_path, data).pixels, read(tmp_path, make()).pixels)


def test_a_high_bit_that_the_values_contradict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bits 4 to 15, but they are in bits 0 to 11.* HighBit"):
        read(tmp_path, make(HighBit=15))


@pytest.mark.parametrize("high", [7, 16, 63])
def test_an_impossible_high_bit_is_told(tmp_path: Path, high: int) -> None:
    image = read(tmp_path, make(HighBit=high))
    np.testing.assert_array_equal(image.pixels, read(tmp_path, make()).pixels)
    assert f"HighBit {high} does not fit 12 stored bits of 16" in image.warnings[0]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("declared", [True, False])
def test_overlays_in_unused_bits_are_left_out(tmp_path: Path, syntax: Any, signed: int, declared: bool) -> None:
    values = (RAMP - 2048 if signed else RAMP) & 0xFFF
    values[values > 2047] |= 0xF000 if signed else 0
    plain = read(tmp_path, make(values, bits=12, PixelRepresentation=signed))
    drawn = values.copy()
    drawn[10:20, 10:20] ^= 0x4000
    data = make(drawn, bits=16, PixelRepresentation=signed)
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax)  # as 16 bits, which is what the encoders of such files did
    data.BitsStored, data.HighBit = 12, 11
    if declared:
        data.add_new(0x60000102, "US", 14)
    image = read(tmp_path, data)
    np.testing.assert_array_equal(image.pixels, plain.pixels)
    assert [told.startswith("100 pixels have bits above the 12") for told in image.warnings] == [True] * (not declared)
    assert ("overlay: the bits of overlays are left out" in image.steps) == declared


@pytest.mark.parametrize("limit", [None, -1990])
def test_padding_has_the_sign_of_the_pixels(tmp_path: Path, limit: int | None) -> None:
    stored = 100 + RAMP // 5
    stored[:20] = -2000
    stored[:2] = -2000 if limit is None else limit
    images = []
    for vr, code in (("SS", lambda value: value), ("US", lambda value: value & 0xFFFF)):
        data = make(stored & 0xFFFF, bits=16, PixelRepresentation=1)
        data.add_new("PixelPaddingValue", vr, code(-2000))
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", vr, code(limit))
        images.append(read(tmp_path, data))
    np.testing.assert_array_equal(images[0].pixels, images[1].pixels)
    low = float(images[1].steps[-1].split(", ")[1].split(" to ")[0])
    assert low > 100


def test_a_table_for_signed_pixels_starts_where_they_start(tmp_path: Path) -> None:
    entries = np.linspace(0, 65535, 4096).astype(int)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, -2048 & 0xFFFF, 16])
    item.add_new("LUTData", "US", entries.tolist())
    data = make((RAMP - 2048) & 0xFFFF, bits=16, PixelRepresentation=1, VOILUTSequence=[item])
    np.testing.assert_allclose(read(tmp_path, data).pixels[..., 0], entries[RAMP] / 65535, atol=1e-6)


# --- colour ---------------------------------------------------------------------------------------------------------

BARS = np.zeros((48, 48, 3), np.uint8)
for channel in range(3):
    BARS[:, 16 * channel : 16 * channel + 16, channel] = 255


def test_rgb_in_both_layouts_and_depths(tmp_path: Path) -> None:
    planes = make(BARS, bits=8, PlanarConfiguration=1)
    planes.PixelData = np.moveaxis(BARS, 2, 0).tobytes()
    for data in (make(BARS, bits=8), make(BARS.astype(int) * 257, bits=16), planes):
        np.testing.assert_allclose(read(tmp_path, data).pixels, BARS / 255, atol=1e-6)


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    ybr = np.asarray(PillowImage.fromarray(BARS).convert("YCbCr"))
    image = read(tmp_path, make(ybr, bits=8, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(image.pixels, BARS / 255, atol=0.02)


FUNDUS = np.zeros((48, 48, 3), np.uint8)
FUNDUS[4:-4, 4:-4, 0] = 100 + np.arange(40)[:, None] * 3
FUNDUS[..., 1], FUNDUS[..., 2] = FUNDUS[..., 0] // 3, FUNDUS[..., 0] // 8


def jpeg(pixels: np.ndarray, kind: str) -> bytes:
    """A stream of YCbCr or RGB (`kind` starts with it) that says so by JFIF, Adobe, names, or not at all (bare)."""
    space, said = kind.split()
    stream = io.BytesIO()
    picture = PillowImage.fromarray(pixels)
    subsampling = 2 if said == "subsampled" else 0
    picture.save(stream, "JPEG", quality=98, subsampling=subsampling, keep_rgb=space == "RGB")
    content = stream.getvalue()
    if said == "JFIF":
        return content
    if content[2:4] in (b"\xff\xe0", b"\xff\xee"):  # without its JFIF or Adobe marker
        content = content[:2] + content[4 + int.from_bytes(content[4:6], "big") :]
    if said == "Adobe":
        marker = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([space == "YBR"])
        content = content[:2] + marker + content[2:]
    names = b"RGB" if said == "names" else b"\1\2\3"
    frame = content.index(b"\xff\xc0") + 10
    scan = content.index(b"\xff\xda") + 5
    edited = bytearray(content)
    for component in range(3):
        edited[frame + 3 * component] = edited[scan + 2 * component] = names[component]
    return bytes(edited)


@pytest.mark.parametrize("tag", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize(
    "kind", ["YBR JFIF", "YBR Adobe", "YBR subsampled", "YBR bare", "RGB Adobe", "RGB names", "RGB bare"]
)
def test_the_stream_decides_over_the_tag_what_its_colours_are(tmp_path: Path, tag: str, kind: str) -> None:
    data = make(FUNDUS, bits=8, PhotometricInterpretation=tag)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([jpeg(FUNDUS, kind)])
    data["PixelData"].is_undefined_length = True
    image = read(tmp_path, data)
    assert np.abs(image.pixels - FUNDUS / 255).mean() < 0.02
    agree = tag[:3] == kind[:3]
    assert bool(image.warnings) == (kind.endswith("bare") and not agree)
    assert any("as the JPEG stream says" in step for step in image.steps) == (not agree and not image.warnings)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_rgb_under_the_tag_of_ybr_is_told_and_read_as_rgb(tmp_path: Path, syntax: Any) -> None:
    data = make(FUNDUS, bits=8, PhotometricInterpretation="YBR_FULL")
    if syntax == RLELossless:
        data.compress(syntax)
    image = read(tmp_path, data)
    np.testing.assert_allclose(image.pixels, FUNDUS / 255, atol=1e-6)
    assert "the header says YBR_FULL, but the values are those of RGB" in image.warnings[0]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_applied(tmp_path: Path, bits: int) -> None:
    data = make(np.repeat(np.arange(3), 16)[None].repeat(48, axis=0), bits=8, PhotometricInterpretation="PALETTE COLOR")
    dtype, top = ("u1", 255) if bits == 8 else ("<u2", 65535)
    for index, name in enumerate(("Red", "Green", "Blue")):
        entries = np.zeros(4, dtype)
        entries[index] = top
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [4, 0, bits])
        data.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.tobytes())
    np.testing.assert_allclose(read(tmp_path, data).pixels, BARS / 255, atol=1e-6)


def test_an_unknown_photometric_interpretation_is_refused_without_quoting_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, make(PhotometricInterpretation="DOE JANE"))
    assert "JANE" not in str(caught.value)


# --- frames and geometry --------------------------------------------------------------------------------------------


def frames(count: int) -> np.ndarray:
    return np.stack([(RAMP + 100 * index) % 4096 for index in range(count)])


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_middle_frame_is_taken(tmp_path: Path, count: int, syntax: Any) -> None:
    data = make(frames(count), WindowCenter=2048, WindowWidth=4096)
    if syntax:
        data.compress(syntax)
    image = read(tmp_path, data)
    np.testing.assert_allclose(image.pixels[..., 0], frames(count)[count // 2] / 4095, atol=1e-4)
    assert (f"frame: {count // 2 + 1} of {count}" in image.steps) == (count > 1)


def test_a_blank_middle_frame_is_left_for_the_nearest_with_content(tmp_path: Path) -> None:
    stored = frames(7)
    stored[2:5] = 9
    image = read(tmp_path, make(stored, WindowCenter=2048, WindowWidth=4096))
    assert "frame: 2 of 7" in image.steps
    assert "middle frame is blank" in image.warnings[0]
    with pytest.raises(InputError, match="blank"):
        read(tmp_path, make(np.zeros((100, 64, 64), int)))


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_content_far_from_the_middle_is_found(tmp_path: Path, syntax: Any) -> None:
    stored = np.zeros((90, 64, 64), int)
    stored[3] = RAMP
    data = make(stored, WindowCenter=2048, WindowWidth=4096)
    if syntax:
        data.compress(syntax)
    image = read(tmp_path, data)
    np.testing.assert_allclose(image.pixels[..., 0], RAMP / 4095, atol=1e-4)
    assert "4 of 90" in image.warnings[0]


def test_blank_frames_that_were_not_looked_at_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="in each of its 9 frames all pixels have the same value"):
        read(tmp_path, make(np.zeros((9, 64, 64), int)))
    monkeypatch.setattr(frame_reader, "_MAX_PIXELS_TRIED", 5 * 64 * 64)
    with pytest.raises(InputError, match="is blank in the 5 of its 9 frames that are nearest the middle"):
        read(tmp_path, make(np.zeros((9, 64, 64), int)))


@pytest.mark.parametrize("count", [0, -3])
def test_no_frames_are_read_as_one(tmp_path: Path, count: int) -> None:
    image = read(tmp_path, make(NumberOfFrames=count))
    assert f"{count} frames" in image.warnings[0]


@pytest.mark.parametrize("place", ["shared", "own"])
def test_enhanced_objects_keep_rescale_and_window_in_functional_groups(tmp_path: Path, place: str) -> None:
    def group(intercept: int) -> Dataset:
        transformation, window, item = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = 1, intercept, "HU"
        window.WindowCenter, window.WindowWidth = 40, 400
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [transformation], [window]
        return item

    data = make(np.stack([RAMP, RAMP, RAMP]), Modality="CT")
    data.SharedFunctionalGroupsSequence = [group(-1024 if place == "shared" else 0)]
    empty = Dataset()
    data.PerFrameFunctionalGroupsSequence = [empty, group(-1024) if place == "own" else empty, empty]
    image = read(tmp_path, data)
    np.testing.assert_allclose(image.pixels[..., 0], np.clip((RAMP - 1024 + 160) / 400, 0, 1), atol=0.003)


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    image = read(tmp_path, make(PixelSpacing=[2, 1]))
    assert image.pixels.shape == (128, 64, 1)
    assert read(tmp_path, make(PixelSpacing=[0.7, 0.7])).pixels.shape == (64, 64, 1)
    assert read(tmp_path, make(PixelAspectRatio=[1, 2])).pixels.shape == (64, 128, 1)
    wide = make(RAMP.reshape(32, 128), PixelSpacing=[1, 3])  # 4 : 1 as stored, 12 : 1 as it is
    assert read(tmp_path, wide).pixels.shape == (32, 384, 1)
    with pytest.raises(InputError, match=r"is 64 x 64 pixels, and 64000000 x 64 with square pixels .* 16 times"):
        read(tmp_path, make(PixelSpacing=[1, 1000000]))


@pytest.mark.parametrize("keyword", ["PixelSpacing", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"])
def test_a_text_where_a_number_should_be_is_ignored_and_told(tmp_path: Path, keyword: str) -> None:
    window = {"WindowCenter": 11, "WindowWidth": 99}
    data = ct(**window, PixelSpacing=[1, 1])
    setattr(data, keyword, [44444444, 1] if keyword == "PixelSpacing" else 44444444)
    path = write(tmp_path / "a.dcm", data)
    path.write_bytes(path.read_bytes().replace(b"44444444", b"4,5 HU  "))
    image = read_image(path)
    assert f"the header's {keyword} is not a number and is ignored" in image.warnings
    assert not any("4,5" in told for told in (*image.steps, *image.warnings))
    unscaled = keyword.startswith("Rescale")  # without half of its rescale a CT is not in Hounsfield units
    assert any("Hounsfield" in told for told in image.warnings) == unscaled
    shown = {"PixelSpacing": "window: 11/99", "WindowCenter": "soft tissue", "WindowWidth": "soft tissue"}
    assert shown.get(keyword, "percentiles") in image.steps[-1]


# --- marks and modalities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "synthetic"), [("YES", True), ("NO", False), (None, False)])
def test_the_mark_of_synthetic_data_is_read(tmp_path: Path, value: str | None, synthetic: bool) -> None:
    data = make() if value is None else make(SyntheticData=value)
    assert read(tmp_path, data).synthetic is synthetic


@pytest.mark.parametrize(
    ("keyword", "value", "warning"),
    [
        ("BurnedInAnnotation", "YES", "may name the patient"),
        ("BurnedInAnnotation", "NO", None),
        ("RecognizableVisualFeatures", "YES", "can be recognised"),
        ("PresentationIntentType", "FOR PROCESSING", "raw values of the detector"),
        ("PresentationIntentType", "FOR PRESENTATION", None),
    ],
)
def test_what_the_header_says_against_the_picture_is_told(
    tmp_path: Path, keyword: str, value: str, warning: str | None
) -> None:
    image = read(tmp_path, make(**{keyword: value}))
    assert [warning in told for told in image.warnings] == [True] if warning else not image.warnings


def test_a_mask_is_told(tmp_path: Path) -> None:
    assert "only 3 different values" in read(tmp_path, make(RAMP % 3, bits=8)).warnings[0]


@pytest.mark.parametrize(
    ("code", "modality", "warning"),
    [
        ("US", None, "modality US is not one of the five"),
        ("MR", "CT", "modality is MRI, the table says CT"),
        ("CR", "X-Ray", None),
        ("OP", "Fundus", None),
        ("OT", "CT", None),
        (PATIENT, "CT", None),
    ],
)
def test_a_modality_that_contradicts_the_table_is_told(
    tmp_path: Path, code: str, modality: str | None, warning: str | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = read(tmp_path, make(Modality=code, RescaleSlope=1, RescaleIntercept=0), modality)
    assert [warning in told for told in image.warnings] == [True] if warning else not image.warnings


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_label_map_is_refused_though_pydicom_does_not_know_its_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Label Map Segmentation Storage"):
        read(tmp_path, make(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.7"))


@pytest.mark.parametrize("sop_class", [BasicTextSRStorage, RTDoseStorage, SegmentationStorage])
def test_what_is_no_picture_is_refused_by_the_name_of_its_sop_class(tmp_path: Path, sop_class: Any) -> None:
    data = make(SOPClassUID=sop_class)
    if sop_class == BasicTextSRStorage:
        del data.Rows, data.Columns, data.PixelData
    with pytest.raises(InputError, match=sop_class.name):
        read(tmp_path, data)


def test_an_image_class_without_pixels_is_refused(tmp_path: Path) -> None:
    data = make()
    del data.PixelData
    with pytest.raises(InputError, match="no pixel data"):
        read(tmp_path, data)


@pytest.mark.parametrize("change", [{"Rows": 65535, "Columns": 65535}, {"Rows": 128}, {"NumberOfFrames": 2**30}])
def test_more_pixels_announced_than_there_are(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"pixels are read|bytes of pixel data"):
        read(tmp_path, make(**change))


def test_a_compressed_frame_larger_than_the_header_says_is_refused_before_decoding(tmp_path: Path) -> None:
    stream = io.BytesIO()
    PillowImage.new("L", (9000, 9000), 3).save(stream, "JPEG")
    data = make(RAMP // 16, bits=8)
    data.PixelData = encapsulate([stream.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    with pytest.raises(InputError, match="9000 x 9000"):
        read(tmp_path, data)


def test_a_deflated_bomb_is_refused_without_unpacking_it(tmp_path: Path) -> None:
    data = make(RAMP)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert read(tmp_path, data).pixels.shape == (64, 64, 1)
    del data.PixelData
    write(tmp_path / "head.dcm", data)
    meta = (tmp_path / "head.dcm").read_bytes()[: 144 + read_file_meta_info(tmp_path / "head.dcm")[0x00020000].value]
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    packed = b"".join(packer.compress(zeros) for _ in range(MAX_INFLATED_BYTES // len(zeros) + 1)) + packer.flush()
    (tmp_path / "bomb.dcm").write_bytes(meta + packed)
    tracemalloc.start()
    with pytest.raises(InputError, match="unpacks to more"):
        read_image(tmp_path / "bomb.dcm")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_an_unknown_transfer_syntax_is_named(tmp_path: Path) -> None:
    data = make()
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    data.PixelData = encapsulate([b"\0\0"])
    with pytest.raises(InputError, match=r"MPEG2 .*1\.2\.840\.10008\.1\.2\.4\.100"):
        read(tmp_path, data)


def test_a_missing_plugin_is_named_with_the_transfer_syntax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make()
    data.compress(JPEG2000Lossless)
    missing = SimpleNamespace(is_available=False, missing_dependencies=["pylibjpeg - requires pylibjpeg-openjpeg>=2.0"])
    monkeypatch.setattr(reader, "get_decoder", lambda syntax: missing)
    with pytest.raises(InputError, match=r"JPEG 2000 .*1\.2\.840\.10008\.1\.2\.4\.90.* pylibjpeg-openjpeg"):
        read(tmp_path, data)


def test_a_file_without_preamble_is_read_and_said_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", make())
    path.write_bytes(path.read_bytes()[132:])
    assert "no DICM preamble" in read_image(path).warnings[0]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, syntax: Any) -> None:
    data = make(frames(3), SOPClassUID=ComputedRadiographyImageStorage)
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax)
    path = write(tmp_path / "a.dcm", data)
    content = path.read_bytes()
    for length in range(0, len(content) - 8, len(content) // 40):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            read_image(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_flipped_bits_never_raise_anything_else(tmp_path: Path, syntax: Any) -> None:
    data = ct(WindowCenter=40, WindowWidth=400, VOILUTSequence=[table(0, 8, np.arange(256))])
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax)
    path = write(tmp_path / "a.dcm", data)
    content = path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(132, 1400, size=4):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            pixels = read_image(path).pixels
        except InputError:
            continue
        assert np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1


# --- patients -------------------------------------------------------------------------------------------------------


def test_no_patient_is_named_whatever_goes_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    named = [
        "PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyDescription", "InstitutionName",
        "Modality", "PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "WindowWidth", "VOILUTFunction",
        "PixelSpacing", "StudyInstanceUID", "SOPClassUID", "SyntheticData", "SpecificCharacterSet",
    ]  # fmt: skip
    said = []
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, keyword in enumerate(named):
            path = tmp_path / f"{number}.dcm"
            data = ct(**dict.fromkeys(named[:6], "X"), NumberOfFrames=1, PixelSpacing=["111111", "11111"])
            for place in {keyword, "PatientName", "PatientID"}:
                setattr(data, place, "2" * 12 if place in ("PixelSpacing", "NumberOfFrames") else "222222222222")
            write(path, data)
            path.write_bytes(path.read_bytes().replace(b"222222222222", b"TESTPERSON^A"))
            caught.clear()
            for content in (path.read_bytes(), path.read_bytes()[:-100]):
                path.write_bytes(content)
                try:
                    image = read_image(path, "CT")
                    said += [*image.steps, *image.warnings]
                except InputError as error:
                    said.append(str(error))
            said += [str(warning.message) for warning in caught]
    streams = capfd.readouterr()
    assert len(said) > len(named)
    assert "TESTPERSON" not in " ".join(said) + caplog.text + streams.out + streams.err
