"""The only reader of image files: PNG, JPEG, DICOM or NIfTI in, float32 [H, W, C] in 0..1 out, with the steps taken.

A file must be what its name says, so nothing is decoded by guessing: the first bytes decide, before any decoder sees
them. Sizes are refused from the header (`medsyn.data.images.pixels`): a small file cannot make a large array.
"""

from __future__ import annotations

import stat
from pathlib import Path

from medsyn.data.images.generator_marks import SYNTHETIC_KEY
from medsyn.data.images.pixels import Image, Record
from medsyn.data.images.raster import read_raster
from medsyn.disk import why_not_a_file
from medsyn.modality_names import base_modality

__all__ = ["SYNTHETIC_KEY", "Image", "format_of", "read_image"]

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".nii": "NIfTI",
    ".nii.gz": "gzip",
}
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\x1f\x8b": "gzip",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"%PDF": "PDF",
    b"PK\x03\x04": "zip",
}
_NIFTI_STARTS = [size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")]


_POINTERS = {  # what version control leaves in the place of a file that was not fetched
    b"version https://git-lfs.github.com/spec/": "is a Git LFS pointer, not the image itself; run `git lfs pull`",
    b"/annex/objects/": "is a git-annex pointer, not the image itself; run `git annex get`",
}


def read_image(
    path: str | Path, modality: str | None = None, volume: int | None = None, whole_range: bool = False
) -> Image:
    """Read one image file.

    Args:
        path: a `.png`, `.jpg`, `.jpeg`, `.dcm`, `.dicom`, `.nii` or `.nii.gz` file, or a DICOM file of any other name
            (archives export `IM000001`); case is ignored.
        modality: a canonical name (`CT`, `Chest CT`), if a table names it. It decides how values without a window of
            their own are shown (CT: soft tissue, 40/400 HU), and a DICOM header that contradicts it is a warning.
        volume: which volume of a 4-D NIfTI file, from 1.
        whole_range: grey values of DICOM and NIfTI are shown from the least to the greatest instead of through a
            window, and the image says what its values were.

    Raises:
        InputError: the file cannot be used; the reason contains nothing that a header says about a patient.
    """
    record, modality = Record(Path(path)), base_modality(modality) if modality else None
    expected = _FORMATS.get(_extension(record.path))
    content = _content(_head(record))
    if expected is None and content != "DICOM":
        said = f"; its content is {content}" if content in ("PNG", "JPEG", "NIfTI") else ""
        raise record.refuse(f"does not have the name of an image; supported are {', '.join(_FORMATS)}{said}")
    # A DICOM file without its preamble starts like no other format; its reader can say more about it.
    if expected and content != expected and not (expected == "DICOM" and content is None):
        said = f"its content is {content}" if content else "its content is of an unknown kind"
        raise record.refuse(f"{said}, but its name says {expected}")
    if volume is not None and expected not in ("NIfTI", "gzip"):
        raise record.refuse("has no volumes: only those of NIfTI files can be named (column 'volume')")
    if expected in ("PNG", "JPEG"):
        return read_raster(record.path)
    if content == "DICOM" or expected == "DICOM":
        from medsyn.data.images.dicom import (
            read_dicom,  # pydicom and nibabel take half a second: imported only if needed
        )

        return read_dicom(record.path, modality, whole_range)
    from medsyn.data.images.nifti import read_nifti

    return read_nifti(record.path, modality, volume, whole_range)


def format_of(path: Path) -> str:
    """The format of a file that `read_image` has read: PNG, JPEG, DICOM or NIfTI."""
    return _FORMATS.get(_extension(path), "DICOM").replace("gzip", "NIfTI")


def _extension(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _head(record: Record) -> bytes:
    """The first bytes of a regular file that is not empty; a pipe or a device would hang or never end."""
    try:
        mode = record.path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise record.refuse(why_not_a_file(mode))
        with record.path.open("rb") as stream:
            head = stream.read(132)
    except OSError as error:
        raise record.refuse(f"cannot be read: {error.strerror}") from None
    if not head:
        raise record.refuse("is empty")
    if reason := next((reason for start, reason in _POINTERS.items() if head.startswith(start)), None):
        raise record.refuse(reason)
    return head


def _content(head: bytes) -> str | None:
    """The format of a file by its first bytes, None if unknown."""
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:4] in _NIFTI_STARTS:
        return "NIfTI"
    return next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)
