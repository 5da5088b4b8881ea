"""The door: which files are let in, by name and by content, and what every picture looks like."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as PillowImage

from medsyn.data.images.read import read_image
from medsyn.errors import InputError
from tests.data.images.test_dicom import make, write


def ramp(rows: int = 40, columns: int = 60) -> np.ndarray:
    return np.linspace(0, 255, rows * columns).reshape(rows, columns).astype(np.uint8)


def save(path: Path, kind: str) -> Path:
    PillowImage.fromarray(ramp()).save(path, kind)
    return path


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "space and ünïcode #1.Png"])
def test_a_picture_is_float32_rows_columns_channels_between_0_and_1(tmp_path: Path, name: str) -> None:
    image = read_image(str(save(tmp_path / name, "PNG")))
    assert image.pixels.dtype == np.float32
    assert image.pixels.shape == (40, 60, 1)
    assert image.pixels.flags.c_contiguous
    np.testing.assert_allclose(image.pixels[..., 0] * 255, ramp(), atol=1e-4)
    assert image.steps and not image.warnings and not image.synthetic


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "BMP", "JPEG"])
def test_the_content_must_be_what_the_name_says(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="its name says PNG"):
        read_image(save(tmp_path / "picture.png", kind))


@pytest.mark.parametrize("name", ["picture.dcm", "picture.nii", "picture.nii.gz", "picture.jpeg"])
def test_a_png_is_not_decoded_under_another_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="content is PNG"):
        read_image(save(tmp_path / name, "PNG"))


def test_a_plain_nifti_is_not_decoded_under_the_name_of_a_compressed_one(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 3), np.int16), np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="content is NIfTI, but its name says gzip"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["picture", "picture.gif", "picture.gz", ".png", "picture.png.txt"])
def test_other_names_are_refused_and_told_what_is_supported(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"supported are \.png"):
        read_image(save(tmp_path / name, "PNG"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.dcm", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"\0", b"<html></html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x1f\x8b"])
def test_fragments_of_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / name)
    assert caught.value.problem.source == str(tmp_path / name)


def test_folders_links_to_nothing_and_endless_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, reason in [
        ("folder", "is a directory"),
        ("loop", "symbolic links"),
        ("no", "No such file"),
        ("x" * 999, "too long"),
    ]:
        with pytest.raises(InputError, match=reason):
            read_image(tmp_path / f"{name}.png")


def test_a_pipe_and_a_device_do_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.dcm").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "named pipe"), ("zero.dcm", "device")):
        with pytest.raises(InputError, match=f"is not a regular file but a {kind}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.dcm", "a.nii", "a.nii.gz", "IM000001"])
@pytest.mark.parametrize(
    ("content", "command"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s100--0.png\n", "git annex get"),
    ],
)
def test_a_pointer_of_version_control_is_told_as_one(tmp_path: Path, name: str, content: str, command: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"pointer, not the image itself; run `{command}`"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.10008.5", "scan.IMA", "noise.raw"])
def test_dicom_is_known_by_its_content_where_the_name_says_nothing(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, make())
    np.testing.assert_array_equal(read_image(path).pixels, read_image(write(tmp_path / "a.dcm", make())).pixels)
    with pytest.raises(InputError, match="content is DICOM, but its name says PNG"):
        read_image(path.rename(tmp_path / "a.png"))


def test_a_picture_without_an_ending_is_told_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its content is PNG"):
        read_image(save(tmp_path / "picture", "PNG"))


@pytest.mark.parametrize("name", ["a.png", "a.dcm"])
def test_only_nifti_has_volumes(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, "PNG") if name == "a.png" else write(tmp_path / name, make())
    with pytest.raises(InputError, match="has no volumes"):
        read_image(path, volume=1)
