"""NIfTI-1 and NIfTI-2 volumes: one slice, shown as radiologists show it, whatever the order of the axes in the file.

The slice is the middle axial one of the (first) volume. There are two exceptions: instead of a blank slice, the nearest
with signal is shown; and if voxels are more than twice as long in one direction as in the others, the acquired plane is
shown (thick sagittal slices of a spine sagittally). Axes are brought to the nearest canonical orientation without
resampling. Axial and coronal pictures show the patient's right on the left; axial ones have the front at the top,
coronal and sagittal ones the head, and sagittal ones look to the left. Values have no window of their own: CT in
Hounsfield units is shown as soft tissue (40/400), anything else between its percentiles.

A volume is streamed, never held: memory is a few slices, however large the file unpacks.
"""

from __future__ import annotations

import gzip
import math
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medsyn.data.images.pixels import (
    CT_WINDOW,
    MAX_PIXELS,
    MAX_VOLUME_BYTES,
    Image,
    Record,
    finish,
    nearest_first,
    refuse_shape,
    square_pixels,
    stretch,
    stretch_percentiles,
)
from medsyn.errors import InputError

_PLANES = ("sagittal", "coronal", "axial")  # the plane across the canonical axis 0 (to the right), 1 (front), 2 (head)
_SIGNAL = 0.05  # of the greatest standard deviation of a slice: a slice below it carries no signal
_THICK = 2.0
_MAX_SIDE = 2**15 - 1  # the limit of NIfTI-1; NIfTI-2 could declare billions of tiny slices
_MAX_OFFSET = 2**24  # bytes of header extensions; nibabel reads them whole
_AIR = -200.0  # Hounsfield units: a CT contains air, which is below this


def read_nifti(path: Path, modality: str | None = None) -> Image:
    """Read one slice of a NIfTI file.

    Args:
        path: a `.nii` or `.nii.gz` file.
        modality: what the table says; for CT it decides the window.

    Raises:
        InputError: damaged, blank, not a 2-D, 3-D or 4-D image, or of a refused size.
    """
    record = Record(path)
    try:
        with _open(path) as stream:
            return _read(record, stream, modality)
    except InputError:
        raise
    except (EOFError, gzip.BadGzipFile):
        raise record.refuse("is damaged: its compressed data ends early or fails its checksum") from None
    except Exception as error:  # a parser fed a damaged file raises anything; its message may quote the header
        raise record.refuse(f"is damaged and cannot be read as NIfTI ({type(error).__name__})") from None


def _open(path: Path) -> BufferedIOBase:
    return gzip.GzipFile(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _read(record: Record, stream: BufferedIOBase, modality: str | None) -> Image:
    image = _load(record, stream)
    shape = _padded(image.shape)
    orientation = _orientation(record, image)
    across, spacing = _plane(shape, image.header.get_zooms(), orientation)
    axis = orientation[:, 0].tolist().index(across)  # of the file's axes, the one that the slices follow
    refuse_shape(record, *(shape[other] for other in range(3) if other != axis))
    backwards = orientation[axis, 1] < 0
    contrast = _contrast(image, shape, axis)
    _check_end(stream, image)
    index = _choose_slice(record, contrast[::-1] if backwards else contrast)
    values = _slice(image, shape, axis, shape[axis] - 1 - index if backwards else index)
    if len(image.shape) > 3 and image.shape[3] > 1:
        record.steps.append(f"volume: 1 of {image.shape[3]}")
    record.steps.append(f"slice: {_PLANES[across]}, {index + 1} of {shape[axis]}")
    pixels = _levels(record, image, values, modality)
    canonical = nib.orientations.apply_orientation(np.expand_dims(pixels, axis), orientation)
    picture = canonical.take(0, axis=across)[::-1, ::-1].swapaxes(0, 1)
    return finish(record, square_pixels(record, picture, spacing[1], spacing[0]), synthetic=False)


# --- the header -----------------------------------------------------------------------------------------------------


def _load(record: Record, stream: BufferedIOBase) -> Any:
    """The file as a nibabel image whose data is still in the file; refuses by its header a file that is too large."""
    is_nifti2 = (540).to_bytes(4, "little"), (540).to_bytes(4, "big")
    start = stream.read(4)
    if len(start) < 4:
        raise record.refuse("is damaged: it ends within its header")
    kind = nib.Nifti2Image if start in is_nifti2 else nib.Nifti1Image
    header = kind.header_class(start + stream.read(kind.header_class.sizeof_hdr - 4), check=False)
    shape, item = header.get_data_shape(), header.get_data_dtype().itemsize
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise record.refuse(f"has the shape {shape}; only 2, 3 or 4 dimensions are supported")
    size = math.prod(shape[:3]) * item
    if size > MAX_VOLUME_BYTES or math.prod(shape[:2]) > MAX_PIXELS or max(shape[:3]) > _MAX_SIDE:
        raise record.refuse(
            f"declares a volume of {' x '.join(map(str, shape[:3]))} and {size:,} bytes; at most {MAX_VOLUME_BYTES:,} "
            f"bytes, planes of {MAX_PIXELS:,} pixels and sides of {_MAX_SIDE:,} are read"
        )
    offset = int(header["vox_offset"])
    if not 0 <= offset <= _MAX_OFFSET:
        raise record.refuse(f"declares {offset:,} bytes before its data; at most {_MAX_OFFSET:,} are read")
    declared, found = offset + math.prod(shape) * item, record.path.stat().st_size
    if not isinstance(stream, gzip.GzipFile) and found < declared:
        raise record.refuse(f"has {found:,} bytes, but its header declares {declared:,}")
    stream.seek(0)
    return kind.from_stream(stream)


def _padded(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of one volume; a 2-D image is a volume of one slice."""
    return shape[0], shape[1], shape[2] if len(shape) > 2 else 1


def _orientation(record: Record, image: Any) -> np.ndarray:
    """nibabel's [3, 2] array: for each axis of the file, its canonical axis and whether it runs along it (1, -1)."""
    if not (image.header["sform_code"] or image.header["qform_code"]):
        record.warnings.append("the header gives no orientation; the NIfTI default (LAS) is assumed")
    finite = np.isfinite(image.affine).all()
    orientation = nib.orientations.io_orientation(image.affine if finite else np.zeros((4, 4)))
    if not np.isfinite(orientation).all():
        record.warnings.append("the header's affine is singular; the axes are assumed to run right, front and up")
        return np.array([[0, 1], [1, 1], [2, 1]])
    codes = "".join(nib.orientations.ornt2axcodes(orientation))
    if codes != "RAS":
        record.steps.append(f"orient: {codes} to RAS")
    return orientation.astype(int)


def _plane(
    shape: tuple[int, int, int], zooms: tuple[float, ...], orientation: np.ndarray
) -> tuple[int, tuple[float, float]]:
    """The canonical axis across the picture's plane, and the spacing along the two canonical axes in it."""
    sizes, spacing = np.ones(3, dtype=int), np.ones(3)
    for axis, canonical in enumerate(orientation[:, 0]):
        sizes[canonical] = shape[axis]
        spacing[canonical] = zooms[axis] if axis < len(zooms) else 1.0
    across = 2
    thickest = int(np.argmax(spacing))
    if list(sizes).count(1) == 1:
        across = int(np.argmin(sizes))
    elif spacing[thickest] > _THICK * np.delete(spacing, thickest).max():
        across = thickest
    first, second = np.delete(spacing, across)
    return across, (float(first), float(second))


# --- the data -------------------------------------------------------------------------------------------------------


def _slab(image: Any, k: int) -> np.ndarray:
    """Plane k along the file's last spatial axis, scaled: float64 [x, y], or [x, y, 3] in 0..255 for colour."""
    slab = np.asarray(image.dataobj[(slice(None), slice(None), k, *[0] * (len(image.shape) - 3))[: len(image.shape)]])
    if slab.dtype.names is not None:  # rgb24 and rgba32; alpha is composited on black, as for PNG
        colour = np.stack([slab[name] for name in "RGB"], axis=-1).astype(np.float64)
        return colour * (slab["A"][..., None] / 255) if "A" in slab.dtype.names else colour
    return (np.abs(slab) if np.iscomplexobj(slab) else slab).astype(np.float64)


def _contrast(image: Any, shape: tuple[int, int, int], axis: int) -> np.ndarray:
    """[slices]: the standard deviation of the finite values of every slice across `axis`, in the file's order."""
    sums = np.zeros((3, shape[axis]))
    for k in range(shape[2]):
        slab = _slab(image, k)
        slab = slab.mean(axis=2) if slab.ndim == 3 else slab
        finite = np.isfinite(slab)
        clean = np.where(finite, slab, 0.0)
        moments = np.stack([finite, clean, clean**2])
        if axis == 2:
            sums[:, k] = moments.sum(axis=(1, 2))
        else:
            sums += moments.sum(axis=2 - axis)
    count, total, squares = sums
    mean = total / np.maximum(count, 1)
    return np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0.0))


def _check_end(stream: BufferedIOBase, image: Any) -> None:
    """Read on to the end of a compressed 3-D file: gzip compares its checksum there."""
    if isinstance(stream, gzip.GzipFile) and math.prod(image.shape) == math.prod(_padded(image.shape)):
        stream.read(1 << 16)


def _choose_slice(record: Record, contrast: np.ndarray) -> int:
    """The slice nearest the middle that carries signal; `contrast` is in canonical order."""
    if not contrast.max() > 0:
        raise record.refuse("is blank: no slice has two different finite values")
    index = next(index for index in nearest_first(len(contrast)) if contrast[index] >= _SIGNAL * contrast.max())
    if index != len(contrast) // 2:
        record.warnings.append("the middle slice is blank; the nearest one with signal is used")
    return index


def _slice(image: Any, shape: tuple[int, int, int], axis: int, index: int) -> np.ndarray:
    """The slice at `index` across `axis`, the other two axes (and colour) in the file's order."""
    if axis == 2:
        return _slab(image, index)
    return np.stack([_slab(image, k).take(index, axis=axis) for k in range(shape[2])], axis=1)


def _levels(record: Record, image: Any, values: np.ndarray, modality: str | None) -> np.ndarray:
    """Scaled values -> float32 [.., .., C] in 0..1."""
    if values.ndim == 3:
        record.steps.append("colour: RGB")
        return (values / 255).astype(np.float32)
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    if (slope, intercept) != (1.0, 0.0):
        record.steps.append(f"rescale: slope {slope:g}, intercept {intercept:g}")
    finite = np.isfinite(values)
    if not finite.all():
        low, high = values[finite].min(), values[finite].max()
        values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
        record.warnings.append(
            f"{int((~finite).sum())} values of the slice are not finite; NaN and -inf became the lowest finite value, "
            "+inf the highest"
        )
    if modality == "CT" and values.min() <= _AIR:
        centre, width = CT_WINDOW
        record.steps.append(f"window: {centre:g}/{width:g}, soft tissue, the default for CT")
        return stretch(values, centre - width / 2, centre + width / 2)[..., None]
    if modality == "CT":
        record.warnings.append(f"CT with no value below {_AIR:g}: not in Hounsfield units, so no window applies")
    return stretch_percentiles(record, values, finite)[..., None]
