"""The levels of the page: those of the file, with its depth and its unit."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsyn.errors import InputError
from medsyn.rating.pixels import MOST_SIDE, Levels, encode, like_generated, of_file
from medsyn.rating.sources import Source
from tests.data.images.test_dicom import RAMP, ct, make, write
from tests.helpers.rating_set import write_png


def levels(path: Path, modality: str = "MRI") -> Levels:
    return of_file(Source(path, modality, f"{modality}: x"))


def test_a_ct_has_every_hounsfield_unit_and_begins_with_its_window(tmp_path: Path) -> None:
    found = levels(write(tmp_path / "a.dcm", ct()), "CT")
    assert (found.unit, found.offset) == ("HU", -1024)
    assert (found.values.astype(int) + found.offset == RAMP - 1024).all()
    assert (found.low + found.offset, found.high + found.offset) == (
        pytest.approx(-160, abs=1),
        pytest.approx(240, abs=1),
    )


def test_the_files_own_window_is_the_first_one(tmp_path: Path) -> None:
    found = levels(write(tmp_path / "a.dcm", ct(WindowCenter=-600, WindowWidth=1600)), "CT")
    assert (found.low - 1024, found.high - 1024) == (-1400, 199), "darker than any pixel: nothing is black"


def test_inverted_values_are_inverted_and_have_no_unit(tmp_path: Path) -> None:
    found = levels(write(tmp_path / "a.dcm", ct(PhotometricInterpretation="MONOCHROME1")), "CT")
    assert (found.unit, found.offset) == ("", 0)
    assert (found.values == 4095 - RAMP).all()


def test_an_mr_of_12_bits_has_its_levels(tmp_path: Path) -> None:
    found = levels(write(tmp_path / "a.dcm", make()))
    assert found.unit == "" and (found.values == RAMP).all()
    assert 0 < found.low < found.high < 4095, "the percentiles"


def test_colours_of_dicom_have_8_bits(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
    found = levels(write(tmp_path / "a.dcm", make(colour, bits=8)), "Fundus")
    assert not found.is_grey and (found.values == colour).all()


@pytest.mark.parametrize(
    ("scale", "offset", "unit"), [(1.0, -1000, "HU"), (0.001, 0, "")], ids=["hounsfield units", "fractions"]
)
def test_nifti_has_its_values_or_all_the_levels_there_are(tmp_path: Path, scale: float, offset: int, unit: str) -> None:
    plane = np.arange(1200).reshape(40, 30) * 2 - 1000.0
    nib.save(nib.Nifti1Image(np.stack([plane] * 3, axis=2) * scale, np.eye(4)), tmp_path / "a.nii.gz")
    found = levels(tmp_path / "a.nii.gz", "CT")
    assert (found.unit, found.offset) == (unit, offset)
    shown = plane[::-1, ::-1].T
    as_values = found.values.astype(float) + offset if unit else found.values / 65535 * 2398 - 1000
    np.testing.assert_allclose(as_values, shown, atol=0.02)


def test_a_mark_of_generated_images_is_seen(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    assert levels(write_png(tmp_path / "a.png", pixels, Synthetic="YES")).is_marked
    assert not levels(write_png(tmp_path / "b.png", pixels)).is_marked
    assert levels(write(tmp_path / "a.dcm", make(SyntheticData="YES"))).is_marked


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_large_image_is_shrunk_and_keeps_its_depth(tmp_path: Path, dtype: type) -> None:
    wide = np.broadcast_to(np.linspace(0, np.iinfo(dtype).max, 3000), (500, 3000)).astype(dtype)
    found = levels(write_png(tmp_path / "a.png", np.ascontiguousarray(wide)), "X-Ray")
    assert (found.values.shape, found.values.dtype) == ((171, MOST_SIDE), dtype)


def test_a_real_image_becomes_like_a_generated_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", ct())
    found = like_generated(Source(path, "CT", "CT: x"), 48)
    assert (found.values.shape, found.values.dtype, found.low, found.high) == ((48, 48), np.uint8, 0, 255)
    assert found.unit == ""


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png: its content is of an unknown kind"):
        levels(tmp_path / "a.png")


def test_files_are_bit_for_bit_the_same(tmp_path: Path) -> None:
    found = levels(write(tmp_path / "a.dcm", ct()), "CT")
    assert encode(found) == encode(found)
