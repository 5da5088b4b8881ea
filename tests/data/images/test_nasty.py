"""Real and hostile files: each gets what its line in the manifest of `../shared/data/nasty` says."""

from __future__ import annotations

import csv
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image as PillowImage

from medsyn.data.images.read import Image, read_image
from medsyn.errors import InputError
from tests.helpers.paths import SHARED_DATA

NASTY, FORMATS = SHARED_DATA / "nasty", SHARED_DATA / "dev" / "formats"


def rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def cases(found: list[dict[str, str]]) -> list[object]:
    """One test per row; a single skipped one where the files are not here."""
    absent = pytest.param({}, marks=pytest.mark.skip(reason="the development images (../shared/data) are not here"))
    return [pytest.param(row, id=row["file"]) for row in found] or [absent]


MANIFEST = [row for row in rows(NASTY / "manifest.csv") if not row["file"].startswith("csv/")]


# --- what an accepted file must look like: one claim of the manifest each -------------------------------------------


def pillow(name: str, mode: str) -> np.ndarray:
    return np.asarray(PillowImage.open(NASTY / "image" / name).convert(mode), dtype=np.float64) / 255


def stored(name: str) -> np.ndarray:
    return pydicom.dcmread(NASTY / "dicom" / name).pixel_array.astype(np.float64)


def window(hounsfield: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.clip((hounsfield - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def gray16(image: Image) -> None:
    values = np.asarray(PillowImage.open(NASTY / "image/gray16.png")).astype(np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    np.testing.assert_allclose(image.pixels[..., 0], np.clip((values - low) / (high - low), 0, 1), atol=1e-5)


def gray16_low_range(image: Image) -> None:
    assert image.pixels.max() == 1 and image.pixels.mean() > 0.3


def cmyk(image: Image) -> None:
    assert np.abs(image.pixels - pillow("webp_named.jpg", "RGB")).mean() * 255 < 10  # the same picture in RGB


def rgba_alpha(image: Image) -> None:
    values = pillow("rgba_alpha.png", "RGBA")
    assert image.pixels[values[..., 3] == 0].max() == 0 < values[values[..., 3] == 0][:, :3].max()
    np.testing.assert_allclose(image.pixels, values[..., :3] * values[..., 3:], atol=0.005)


def la_alpha(image: Image) -> None:
    values = pillow("la_alpha.png", "LA")
    np.testing.assert_allclose(image.pixels[..., 0], values[..., 0] * values[..., 1], atol=0.005)


def palette_transparent(image: Image) -> None:
    values = pillow("palette_transparent.png", "RGBA")
    np.testing.assert_allclose(image.pixels, values[..., :3] * values[..., 3:], atol=0.005)


def bilevel(image: Image) -> None:
    assert set(np.unique(image.pixels)) == {0, 1}


def exif_rotated(image: Image) -> None:
    upright = np.asarray(PillowImage.open(NASTY / "image/exif_rotated.jpg")) / 255
    np.testing.assert_allclose(image.pixels, np.rot90(upright, -1), atol=1e-6)  # orientation 6: a quarter clockwise


def uppercase(image: Image) -> None:
    np.testing.assert_allclose(image.pixels[..., 0], pillow("uppercase_ext.PNG", "L"), atol=1e-6)


def named_with_spaces(image: Image) -> None:
    np.testing.assert_allclose(image.pixels[..., 0], pillow("space and ünïcode #1.png", "L"), atol=1e-6)


def window_width_zero(image: Image) -> None:
    hounsfield = stored("window_width_zero.dcm") - 1024
    np.testing.assert_allclose(image.pixels[..., 0], window(hounsfield, 40, 400), atol=1e-5)
    assert "width 0" in image.warnings[0]


def window_multivalue(image: Image) -> None:
    hounsfield = stored("window_multivalue.dcm") - 1024
    np.testing.assert_allclose(image.pixels[..., 0], window(hounsfield, 40, 400), atol=1e-5)


def window_empty(image: Image) -> None:
    hounsfield = stored("window_empty.dcm") - 1024
    np.testing.assert_allclose(image.pixels[..., 0], window(hounsfield, 40, 400), atol=1e-5)
    assert len(np.unique(image.pixels)) >= 200


def ct_without_rescale(image: Image) -> None:
    assert "Hounsfield" in image.warnings[0]
    inside = stored("ct_without_rescale.dcm") != -2000  # the padding
    assert 0.05 < image.pixels[..., 0][inside].mean() < 0.95


def monochrome1(image: Image) -> None:
    hounsfield = stored("monochrome1_ct.dcm") - 1024
    np.testing.assert_allclose(image.pixels[..., 0], 1 - window(hounsfield, -600, 1500), atol=1e-5)


def phi_header(image: Image) -> None:
    np.testing.assert_allclose(image.pixels[..., 0], window(stored("phi_header.dcm") - 1024, -600, 1500), atol=1e-5)


def palette_color(image: Image) -> None:
    data = pydicom.dcmread(NASTY / "dicom/palette_color.dcm")
    tables = [
        np.frombuffer(data[f"{name}PaletteColorLookupTableData"].value, "<u2") for name in ("Red", "Green", "Blue")
    ]
    expected = np.stack([table[data.pixel_array] for table in tables], axis=2) / 65535
    np.testing.assert_allclose(image.pixels, expected, atol=1e-5)
    assert np.ptp(image.pixels, axis=2).max() > 0.2


def ybr_422(image: Image) -> None:
    colours = {tuple(np.round(image.pixels[row, 50]).astype(int)) for row in range(100)}
    assert {(1, 0, 0), (0, 1, 0), (0, 0, 1)} <= colours


def us_modality(image: Image) -> None:
    assert any("US" in warning for warning in image.warnings)


def htj2k(image: Image) -> None:
    assert abs(image.pixels.mean() * 255 - 127.104) < 0.01


def canonical(name: str, index: int | None = None, folder: Path = NASTY / "nifti") -> np.ndarray:
    """The axial slice as nibabel gives it, as radiologists show it, between its percentiles."""
    volume = np.asarray(nib.as_closest_canonical(nib.load(folder / name)).dataobj, dtype=np.float64)
    volume = volume[..., 0] if volume.ndim == 4 else volume
    plane = volume[:, :, volume.shape[2] // 2 if index is None else index]
    low, high = np.percentile(plane[np.isfinite(plane)], [0.5, 99.5])
    plane = np.nan_to_num(plane, nan=-np.inf)
    return np.clip((plane - low) / (high - low), 0, 1)[::-1, ::-1].T


def same_as(name: str, index: int | None = None) -> Callable[[Image], None]:
    def check(image: Image) -> None:
        np.testing.assert_allclose(image.pixels[..., 0], canonical(name, index), atol=1e-5)

    return check


def not_finite(name: str) -> Callable[[Image], None]:
    def check(image: Image) -> None:
        same_as(name)(image)
        assert "not finite" in image.warnings[0]
        assert 0.1 < image.pixels.mean() < 0.9

    return check


def oriented(image: Image) -> None:
    one = read_image(NASTY / "nifti/orient_RAS.nii.gz").pixels
    np.testing.assert_allclose(image.pixels, one, atol=1e-6)


def two_d(image: Image) -> None:
    plane = np.asarray(nib.load(NASTY / "nifti/two_d.nii.gz").dataobj, dtype=np.float64)
    low, high = np.percentile(plane, [0.5, 99.5])
    np.testing.assert_allclose(image.pixels[::-1, ::-1, 0].T, np.clip((plane - low) / (high - low), 0, 1), atol=1e-5)


def same_volume(image: Image) -> None:
    np.testing.assert_allclose(image.pixels, read_image(NASTY / "nifti/nifti2.nii.gz").pixels, atol=1e-4)


def scl_slope_2_5(image: Image) -> None:
    same_volume(image)
    raw = np.asarray(nib.load(NASTY / "nifti/scl_slope_zero.nii").dataobj, dtype=np.float64)[:, :, 6]
    low, high = np.percentile(2.5 * raw - 100, [0.5, 99.5])
    assert f"scale: percentiles 0.5 to 99.5, {low:g} to {high:g}" in image.steps


CLAIMS: dict[str, Callable[[Image], None]] = {
    "image/gray16.png": gray16,
    "image/gray16_low_range.png": gray16_low_range,
    "image/cmyk.jpg": cmyk,
    "image/rgba_alpha.png": rgba_alpha,
    "image/la_alpha.png": la_alpha,
    "image/palette_transparent.png": palette_transparent,
    "image/bilevel.png": bilevel,
    "image/exif_rotated.jpg": exif_rotated,
    "image/uppercase_ext.PNG": uppercase,
    "image/space and ünïcode #1.png": named_with_spaces,
    "dicom/window_width_zero.dcm": window_width_zero,
    "dicom/window_multivalue.dcm": window_multivalue,
    "dicom/window_empty.dcm": window_empty,
    "dicom/ct_without_rescale.dcm": ct_without_rescale,
    "dicom/monochrome1_ct.dcm": monochrome1,
    "dicom/phi_header.dcm": phi_header,
    "dicom/palette_color.dcm": palette_color,
    "dicom/ybr_422.dcm": ybr_422,
    "dicom/us_unknown_modality.dcm": us_modality,
    "dicom/htj2k_unsupported.dcm": htj2k,
    "nifti/real_with_nan.nii": not_finite("real_with_nan.nii"),
    "nifti/real_with_inf.nii.gz": not_finite("real_with_inf.nii.gz"),
    "nifti/middle_slices_blank.nii.gz": same_as("middle_slices_blank.nii.gz", 4),
    "nifti/four_d.nii.gz": same_as("four_d.nii.gz"),
    "nifti/two_d.nii.gz": two_d,
    "nifti/scl_slope_zero.nii": same_volume,
    "nifti/scl_slope_2_5.nii": scl_slope_2_5,
    "nifti/oblique_30deg.nii.gz": same_volume,
    "nifti/orient_RAS.nii.gz": oriented,
    "nifti/orient_LPI.nii.gz": oriented,
    "nifti/orient_PSR.nii.gz": oriented,
    "nifti/orient_ASL.nii.gz": oriented,
    "nifti/singular_affine.nii.gz": same_volume,
    "nifti/big_endian.nii": same_volume,
    "nifti/nifti2.nii.gz": same_as("nifti2.nii.gz"),
}
REASONS = {
    "dicom/sr.dcm": "Comprehensive SR Storage",
    "dicom/sr2.dcm": "Basic Text SR Storage",
    "dicom/rtstruct.dcm": "RT Structure Set Storage",
    "dicom/rtplan.dcm": "RT Plan Storage",
    "dicom/rtdose_multiframe_u32.dcm": "RT Dose Storage",
    "dicom/seg_1bit.dcm": "Segmentation Storage",
    "dicom/png_named.dcm": "PNG",
    "dicom/no_pixeldata.dcm": "no pixel data",
    "dicom/rows_too_big.dcm": "116,964",
    "dicom/bomb_header_65535.dcm": "65535 x 65535",
    "dicom/bomb_deflated_288MB.dcm": "unpacks to more",
    "dicom/rescale_slope_zero.dcm": "slope of 0",
    "dicom/constant.dcm": "blank",
    "dicom/wrong_transfer_syntax.dcm": "RLE Lossless",
    "image/animated_gif_named.png": "GIF",
    "image/webp_named.jpg": "WebP",
    "image/tiff_named.png": "TIFF",
    "image/huge_header_60000.png": "33,554,432",
    "image/bomb_real_400MP_1bit.png": "33,554,432",
    "image/bomb_100MP_8bit.png": "10000 x 10000",
    "image/one_pixel.png": "1 x 1",
    "image/extreme_aspect.png": "4000 x 3",
    "image/all_black.png": "blank",
    "image/all_white.jpg": "blank",
    "image/no_extension": "does not have the name of an image",
    "nifti/all_nan.nii.gz": "blank",
    "nifti/constant.nii.gz": "blank",
    "nifti/truncated.nii.gz": "ends early",
    "nifti/not_gzip.nii.gz": "content is NIfTI",
    "nifti/bomb_header_6TB.nii": "6,144,000,000,000",
    "nifti/bomb_gzip_268MB.nii.gz": "blank",
    "nifti/five_d.nii.gz": "(64, 64, 4, 1, 3)",
}
# Its line is about readers without the plugin; `formats/expected.csv` has the same file, with the mean to expect.
READ_ALL_THE_SAME = {"dicom/htj2k_unsupported.dcm"}


@pytest.mark.parametrize("row", cases(MANIFEST))
def test_every_file_gets_what_its_line_says(
    row: dict[str, str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    file, verdict = row["file"], row["verdict"]
    if file in READ_ALL_THE_SAME:
        verdict = "accept"
    try:
        image = read_image(NASTY / file)
    except InputError as error:
        assert verdict != "accept"
        assert error.problem.source == str(NASTY / file)
        assert REASONS.get(file, "") in error.problem.reason
        said = str(error)
    else:
        assert verdict != "reject"
        assert image.pixels.ndim == 3 and image.pixels.shape[2] in (1, 3) and image.pixels.dtype == np.float32
        assert np.isfinite(image.pixels).all() and image.pixels.min() >= 0 and image.pixels.max() <= 1
        CLAIMS.get(file, lambda image: None)(image)
        said = " ".join((*image.steps, *image.warnings))
    streams = capfd.readouterr()
    said += caplog.text + streams.out + streams.err
    assert "testperson" not in said.lower() and "0000042" not in said


def test_every_accepted_file_has_its_claim_checked() -> None:
    accepted = {row["file"] for row in MANIFEST if row["verdict"] == "accept"}
    assert accepted <= set(CLAIMS)
    assert not MANIFEST or set(CLAIMS) | set(REASONS) <= {row["file"] for row in MANIFEST}


def test_bombs_need_little_memory(shared_data: Path) -> None:
    bombs = [str(NASTY / row["file"]) for row in MANIFEST if "bomb" in row["file"] or "huge" in row["file"]]
    program = (
        "import resource, sys\n"
        "from medsyn.data.images.read import read_image\n"
        "from medsyn.errors import InputError\n"
        "def read(path):\n"
        "    try: read_image(path)\n"
        "    except InputError: return\n"
        "    raise SystemExit(path)\n"
        f"read_image({str(NASTY / 'nifti/nifti2.nii.gz')!r}); read_image({str(NASTY / 'dicom/phi_header.dcm')!r})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]: read(path)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, *bombs], capture_output=True, text=True, check=True)
    assert len(bombs) >= 8
    assert int(result.stdout) < 32  # MiB beyond what the libraries need


# --- the format zoo and the development images ----------------------------------------------------------------------

REFUSED = {
    "liver_1frame.dcm": "Segmentation Storage",
    "rtdose.dcm": "RT Dose Storage",
    "no_meta.dcm": "no DICM preamble",
    "JPEG-lossy.dcm": "JPEG Extended",
}


@pytest.mark.parametrize("row", cases(rows(FORMATS / "expected.csv")))
def test_the_format_zoo(row: dict[str, str]) -> None:
    path = FORMATS / row["file"]
    if path.name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[path.name]):
            read_image(path)
        return
    image = read_image(path)
    if row["kind"] == "nifti":
        if path.name == "CIT168.nii.gz":
            assert image.pixels.shape == (69, 79, 3)
        else:
            np.testing.assert_allclose(image.pixels[..., 0], canonical(path.name, folder=FORMATS), atol=1e-5)
        return
    data = pydicom.dcmread(path)
    frame = pydicom.pixels.pixel_array(path if path.name != "image_dfl.dcm" else data, index=int(row["frames"]) // 2)
    if data.SamplesPerPixel == 3:
        assert image.pixels.shape[2] == 3
        if path.name != "color-pl.dcm":  # its pixels are not square
            np.testing.assert_allclose(image.pixels, frame / np.iinfo(frame.dtype).max, atol=1e-6)
            assert row["frames"] != "1" or abs(frame.mean() - float(row["raw_mean_pydicom3"])) < 0.05
    elif row["photometric"] == "PALETTE COLOR":
        assert image.pixels.shape[2] == 3
    else:
        assert image.pixels.shape == (*frame.shape, 1)
        if row["frames"] == "1":
            assert abs(frame.mean() - float(row["raw_mean_pydicom3"])) < 0.01 * abs(frame.mean()) + 0.01
        order = np.argsort(frame, axis=None)
        rising = np.diff(image.pixels.ravel()[order]) * (-1 if row["photometric"] == "MONOCHROME1" else 1)
        assert rising.min() >= 0  # windows and rescaling keep the order of grey values
        assert image.pixels.std() > 0.05


def test_every_development_image_is_read_without_a_problem(shared_data: Path) -> None:
    read = 0
    for table, column in (("metadata.csv", "path"), ("ratings.csv", "image_path")):
        for row in rows(shared_data / "dev" / table):
            image = read_image(shared_data / "dev" / row[column], row["modality"])
            assert not image.warnings, (row[column], image.warnings)
            assert not image.synthetic and image.pixels.std() > 0.02, row[column]
            read += 1
    assert read > 600
