"""NIfTI: one picture whatever the order of the axes, the slice that is taken, odd values, damage and bombs."""

from __future__ import annotations

import gzip
import itertools
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medsyn.data.images.pixels import MAX_VOLUME_BYTES
from medsyn.data.images.read import Image, read_image
from medsyn.errors import InputError

RAS = np.random.default_rng(0).integers(0, 1000, (24, 28, 20)).astype(np.int16)  # to the right, to the front, up


def read(path: Path, values: np.ndarray, affine: np.ndarray | None = None, modality: str | None = None) -> Image:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return read_image(path, modality)


def as_shown(plane: np.ndarray) -> np.ndarray:
    """A canonical plane as rows from the top, columns from the left, between its percentiles."""
    low, high = np.percentile(plane, [0.5, 99.5])
    return np.clip((plane[::-1, ::-1].T - low) / (high - low), 0, 1)


# --- orientation and plane ------------------------------------------------------------------------------------------


def all_orientations() -> list[str]:
    choices = itertools.product(*(pair for pair in ("RL", "AP", "SI")))
    return ["".join(order) for codes in choices for order in itertools.permutations(codes)]


@pytest.mark.parametrize("codes", all_orientations())
def test_every_order_of_the_axes_gives_one_picture(tmp_path: Path, codes: str) -> None:
    image = nib.Nifti1Image(RAS, np.diag([1.0, 1.0, 1.5, 1.0]))
    wanted = nib.orientations.axcodes2ornt(codes)
    nib.save(image.as_reoriented(wanted if codes == "RAS" else nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), wanted)), tmp_path / "a.nii.gz")  # fmt: skip
    result = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(result.pixels[..., 0], as_shown(RAS[:, :, 10]), atol=1e-6)
    assert result.steps[-2] == "slice: axial, 11 of 20"
    assert (f"orient: {codes} to RAS" in result.steps) == (codes != "RAS")


@pytest.mark.parametrize(
    ("spacing", "across", "plane"), [([1, 1, 5], 2, "axial"), ([1, 5, 1], 1, "coronal"), ([5, 1, 1], 0, "sagittal")]
)
def test_thick_slices_are_shown_as_they_were_acquired(
    tmp_path: Path, spacing: list[float], across: int, plane: str
) -> None:
    image = read(tmp_path / "a.nii", RAS, np.diag([*spacing, 1]))
    middle = RAS.take(RAS.shape[across] // 2, axis=across)
    np.testing.assert_allclose(image.pixels[..., 0], as_shown(middle), atol=1e-6)
    assert plane in image.steps[0]


def test_the_patients_right_is_on_the_left_and_the_front_at_the_top(tmp_path: Path) -> None:
    values = np.zeros((24, 24, 20), np.int16)
    values[18:, 12:, :] = 100  # right, front
    pixels = read(tmp_path / "a.nii", values).pixels[..., 0]
    assert pixels[:12, :6].min() == 1 and pixels.sum() == 72


@pytest.mark.parametrize("shape", [(24, 28), (24, 28, 1), (24, 28, 1, 1), (24, 1, 28), (1, 24, 28), (24, 28, 1, 6)])
def test_a_single_plane_is_shown_whatever_its_place(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    assert read(tmp_path / "a.nii.gz", values).pixels.shape == (28, 24, 1)


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    image = read(tmp_path / "a.nii", RAS, np.diag([1, 1.5, 1.5, 1]))
    assert image.pixels.shape == (42, 24, 1)
    assert "square pixels" in image.steps[-1]


def test_a_rotation_takes_the_nearest_axes_without_resampling(tmp_path: Path) -> None:
    affine = np.eye(4)
    turn = np.deg2rad(30)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    image = read(tmp_path / "a.nii", RAS, affine)
    np.testing.assert_allclose(image.pixels[..., 0], as_shown(RAS[:, :, 10]), atol=1e-6)


@pytest.mark.parametrize("fault", [0.0, np.nan, np.inf])
def test_a_useless_affine_falls_back_to_the_order_in_the_file(tmp_path: Path, fault: float) -> None:
    image = nib.Nifti1Image(RAS, np.eye(4))
    image.header.set_sform(np.eye(4), code=1)
    content = bytearray(image.to_bytes())
    content[280:328] = np.full(12, fault, "<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(content)
    result = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(result.pixels[..., 0], as_shown(RAS[:, :, 10]), atol=1e-6)
    assert "singular" in result.warnings[0]


def test_a_missing_orientation_is_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAS, None)
    image.to_filename(tmp_path / "a.nii")
    result = read_image(tmp_path / "a.nii")
    assert "gives no orientation" in result.warnings[0]


# --- which slice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["RAS", "SPR", "LSA"])
@pytest.mark.parametrize(("blank", "taken"), [(slice(9, 12), 8), (slice(8, 15), 7), (slice(1, 20), 0)])
def test_a_blank_middle_is_left_for_the_nearest_slice_with_signal(
    tmp_path: Path, axes: str, blank: slice, taken: int
) -> None:
    values = RAS.copy()
    values[:, :, blank] = values[:, :, blank] % 3  # noise, no signal
    image = nib.Nifti1Image(values, np.eye(4))
    order = nib.orientations.axcodes2ornt(axes)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), order)),
             tmp_path / "a.nii.gz")  # fmt: skip
    result = read_image(tmp_path / "a.nii.gz")
    assert f"slice: axial, {taken + 1} of 20" in result.steps
    assert "middle slice is blank" in result.warnings[0]
    np.testing.assert_allclose(result.pixels[..., 0], as_shown(values[:, :, taken]), atol=1e-6)


@pytest.mark.parametrize("axes", ["RAS", "SPR", "LSA"])
@pytest.mark.parametrize(("blank", "passes"), [(False, 1), (True, 2)])
def test_a_file_is_decompressed_once_unless_its_middle_is_blank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: str, blank: bool, passes: int
) -> None:
    values = np.where(np.arange(20) == 10, 0, RAS) if blank else RAS
    image = nib.Nifti1Image(values.astype(np.int16), np.eye(4))
    order = nib.orientations.axcodes2ornt(axes)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), order)),
             tmp_path / "a.nii.gz")  # fmt: skip
    read = []

    class Counted(gzip.GzipFile):
        def readinto(self, buffer: Any) -> int:
            read.append(count := super().readinto(buffer))
            return count

    monkeypatch.setattr(gzip, "GzipFile", Counted)
    read_image(tmp_path / "a.nii.gz")
    assert sum(read) == passes * RAS.nbytes


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_only_the_volume_that_is_asked_for_is_held(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 9999, (64, 64, 256, 6)).astype(np.int16)  # 12 MiB
    nib.save(nib.Nifti1Image(values, np.eye(4)), path := tmp_path / f"a.{suffix}")
    tracemalloc.start()
    read_image(path, volume=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes // 4


def test_a_slope_is_not_applied_to_colour(tmp_path: Path) -> None:
    rgb = np.zeros((24, 28, 20), dtype=[(name, "u1") for name in "RGB"])
    rgb["R"] = RAS % 256
    content = bytearray(nib.Nifti1Image(rgb, np.eye(4)).to_bytes())
    content[112:120] = np.array([2, 1], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    image = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(image.pixels[..., 0], (rgb["R"][:, :, 10] / 255)[::-1, ::-1].T, atol=1e-6)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_the_volume_that_is_asked_for_is_read(tmp_path: Path, suffix: str) -> None:
    volumes = [RAS, RAS[::-1], 999 - RAS]
    path = tmp_path / f"a.{suffix}"
    first = read(path, np.stack(volumes, axis=3))
    assert "first of 3 volumes" in first.warnings[0] and "column 'volume'" in first.warnings[0]
    np.testing.assert_allclose(first.pixels[..., 0], as_shown(RAS[:, :, 10]), atol=1e-6)
    for number, values in enumerate(volumes, 1):
        image = read_image(path, volume=number)
        np.testing.assert_allclose(image.pixels[..., 0], as_shown(values[:, :, 10]), atol=1e-6)
        assert f"volume: {number} of 3" in image.steps and not image.warnings
    with pytest.raises(InputError, match="has no volume 4: it has 3"):
        read_image(path, volume=4)


def test_a_volume_along_another_axis_is_read(tmp_path: Path) -> None:
    both = np.stack([RAS * 0, RAS], axis=3)
    nib.save(nib.Nifti1Image(both, np.diag([5.0, 1, 1, 1])), tmp_path / "a.nii.gz")
    assert "slice: sagittal, 13 of 24" in read_image(tmp_path / "a.nii.gz", volume=2).steps


def test_a_file_of_one_volume_has_volume_1(tmp_path: Path) -> None:
    plain = read(tmp_path / "a.nii", RAS)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii", volume=1).pixels, plain.pixels)
    assert plain.warnings == ()
    with pytest.raises(InputError, match="has no volume 2: it has 1"):
        read_image(tmp_path / "a.nii", volume=2)


@pytest.mark.parametrize(
    ("code", "refused", "warning"),
    [(1002, True, ""), (1003, True, ""), (0, False, ""), (1007, False, ""), (5, False, "statistical map")],
)
def test_the_intent_tells_labels_and_statistics(tmp_path: Path, code: int, refused: bool, warning: str) -> None:
    image = nib.Nifti1Image(RAS, np.eye(4))
    image.header["intent_code"] = code
    nib.save(image, tmp_path / "a.nii")
    if refused:
        with pytest.raises(InputError, match=f"label map .intent code {code}"):
            read_image(tmp_path / "a.nii")
        return
    warnings = read_image(tmp_path / "a.nii").warnings
    assert [warning in told for told in warnings] == [True] if warning else warnings == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_mask_without_an_intent_is_told(tmp_path: Path, dtype: type) -> None:
    assert "only 5 different values" in read(tmp_path / "a.nii", (RAS % 5).astype(dtype)).warnings[0]


def test_two_orientations_that_differ_are_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAS, np.eye(4))
    image.set_sform(np.diag([-1.0, 1, 1, 1]), 2)
    for qform, warned in ((np.eye(4), True), (np.diag([-1.0, 1, 1.001, 1]), False)):
        image.set_qform(qform, 1)
        nib.save(image, tmp_path / "a.nii")
        warnings = read_image(tmp_path / "a.nii").warnings
        assert [told for told in warnings if "its sform says LAS and its qform RAS" in told] == list(warnings)
        assert bool(warnings) == warned


@pytest.mark.parametrize("shape", [(64,), (1, 64), (24, 28, 20, 1, 3), (24, 28, 20, 2, 2)])
def test_what_is_no_picture_or_volume_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        read(tmp_path / "a.nii", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))


# --- values ---------------------------------------------------------------------------------------------------------


def test_values_that_are_not_finite_are_replaced_before_scaling(tmp_path: Path) -> None:
    values = RAS.astype(np.float32)
    values[0, 0, 10], values[1, 0, 10], values[2, 0, 10] = np.nan, -np.inf, np.inf
    image = read(tmp_path / "a.nii", values)
    assert np.isfinite(image.pixels).all()
    assert image.pixels[-1, ::-1, 0][:3].tolist() == [0, 0, 1]
    assert image.warnings[0].startswith("3 values")
    finite = values[:, :, 10][np.isfinite(values[:, :, 10])]
    low, high = np.percentile(finite, [0.5, 99.5])
    np.testing.assert_allclose(
        image.pixels[0, 0, 0], np.clip((values[-1, -1, 10] - low) / (high - low), 0, 1), rtol=1e-4
    )


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_blank_volumes_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(InputError, match="is blank"):
        read(tmp_path / "a.nii.gz", np.full((20, 20, 8), value, np.float32))


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -100), (0, 55), (-1, 0)])
def test_slope_and_intercept_are_applied_unless_the_slope_is_zero(
    tmp_path: Path, slope: float, intercept: float
) -> None:
    image = nib.Nifti1Image(RAS, np.eye(4))
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    result = read_image(tmp_path / "a.nii")
    scaled = RAS * slope + intercept if slope else RAS
    np.testing.assert_allclose(result.pixels[..., 0], as_shown(scaled[:, :, 10]), atol=1e-5)
    assert (f"rescale: slope {slope:g}, intercept {intercept:g}" in result.steps) == bool(slope)


def test_ct_in_hounsfield_units_shows_soft_tissue(tmp_path: Path) -> None:
    hounsfield = np.broadcast_to(np.linspace(-1000, 1000, 64 * 64).reshape(64, 64, 1), (64, 64, 9)).astype(np.float32)
    image = read(tmp_path / "a.nii.gz", hounsfield, modality="CT")
    expected = np.clip((hounsfield[::-1, ::-1, 4].T + 160) / 400, 0, 1)
    np.testing.assert_allclose(image.pixels[..., 0], expected, atol=1e-5)
    assert len(np.unique(np.round(image.pixels * 255))) >= 200
    assert "percentiles" in read(tmp_path / "a.nii.gz", hounsfield, modality="MRI").steps[-1]


def test_ct_in_other_units_is_told(tmp_path: Path) -> None:
    image = read(tmp_path / "a.nii.gz", RAS, modality="CT")
    assert "Hounsfield" in image.warnings[0] and "percentiles" in image.steps[-1]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">i2", "i4", ">f4", "f8", "u8", "c8", ">c16"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_types_byte_orders_and_both_versions(tmp_path: Path, dtype: str, kind: Any) -> None:
    values = (RAS % 100).astype(dtype)
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(values.dtype)
    nib.save(kind(values, np.eye(4), header), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(
        read_image(tmp_path / "a.nii.gz").pixels[..., 0], as_shown(RAS[:, :, 10] % 100), atol=1e-6
    )


def test_colour_volumes_keep_their_colour_and_alpha_is_black(tmp_path: Path) -> None:
    rgb = np.zeros((24, 28, 20), dtype=[(name, "u1") for name in "RGB"])
    rgb["R"], rgb["G"], rgb["B"] = RAS % 256, RAS % 99, 7
    image = read(tmp_path / "rgb.nii.gz", rgb)
    expected = np.stack([(rgb[name][:, :, 10] / 255)[::-1, ::-1].T for name in "RGB"], axis=2)
    np.testing.assert_allclose(image.pixels, expected, atol=1e-6)
    rgba = np.zeros((24, 28, 20), dtype=[(name, "u1") for name in "RGBA"])
    for name in "RGB":
        rgba[name] = rgb[name]
    rgba["A"][12:] = 255
    np.testing.assert_allclose(read(tmp_path / "rgba.nii", rgba).pixels[:, :12], expected[:, :12], atol=1e-6)
    assert read(tmp_path / "rgba.nii", rgba).pixels[:, 12:].max() == 0


# --- damage and bombs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    read(path, RAS)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            read_image(path)


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    read(path, RAS)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_flipped_bits_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    content = nib.Nifti1Image(RAS, np.eye(4)).to_bytes()
    rng = np.random.default_rng(3)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    for _ in range(120):
        damaged = bytearray(content)
        for place in rng.integers(4, 352, size=3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(gzip.compress(damaged, 1) if suffix == "nii.gz" else damaged)
        try:
            pixels = read_image(path).pixels
        except InputError:
            continue
        assert np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1


def test_a_text_and_half_a_pair_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.nii").write_text("this is not an image\n" * 50)
    pair = nib.Nifti1Pair(RAS, np.eye(4))
    nib.save(pair, tmp_path / "pair.hdr")
    (tmp_path / "pair.hdr").rename(tmp_path / "half.nii")
    for name in ("text.nii", "half.nii"):
        with pytest.raises(InputError):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    "shape", [(32000, 32000, 3000), (20000, 20000, 1), (32000, 30, 30000), (16, 16, 10**9), (16, 2**40, 16)]
)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_an_absurd_header_is_refused_before_reading(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 544, b"n+2\0\r\n\x1a\n"
    content = header.binaryblock + bytes(600)
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(content) if suffix == "nii.gz" else content)
    with pytest.raises(InputError, match=f"{MAX_VOLUME_BYTES:,}"):
        read_image(tmp_path / f"a.{suffix}")


def test_a_gzip_bomb_is_streamed_in_little_memory(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((256, 256, 600))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1\0"
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(600):
            stream.write(bytes(256 * 256 * 2))
    tracemalloc.start()
    with pytest.raises(InputError, match="is blank"):
        read_image(tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_a_header_extension_is_no_way_to_fill_the_memory(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((32, 32, 16))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 2e9, b"n+1\0"
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + b"\1\0\0\0" + np.array([2_000_000_000, 6], "<i4").tobytes() + bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(InputError, match="before its data"):
        read_image(tmp_path / "a.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


def test_free_text_of_the_header_is_never_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nib.Nifti1Image(RAS.astype(np.float32), np.eye(4))
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[name] = b"TESTPERSON"
    content = bytearray(image.to_bytes())
    said = []
    for place in (0, 40, 70, 108, 112, 344):
        damaged = bytearray(content)
        damaged[place + 1] ^= 0x55
        (tmp_path / "a.nii").write_bytes(damaged)
        try:
            result = read_image(tmp_path / "a.nii")
            said += [*result.steps, *result.warnings]
        except InputError as error:
            said.append(str(error))
    assert said and "TESTPERSON" not in " ".join(said) + caplog.text
