"""NIfTI-1 and NIfTI-2 volumes: one slice, shown as radiologists show it, whatever the order of the axes in the file.

The slice is the middle axial one of the volume that is asked for, else of the first, with a warning. There are two
exceptions: instead of a blank slice, the nearest with signal is shown; and if voxels are more than twice as long in one
direction as in the others, the acquired plane is shown (thick sagittal slices of a spine sagittally). Axes are brought
to the nearest canonical orientation without resampling. Axial and coronal pictures show the patient's right on the
left; axial ones have the front at the top, coronal and sagittal ones the head, and sagittal ones look to the left.
Values have no window of their own: CT in Hounsfield units is shown as soft tissue (40/400), anything else between its
percentiles.

A volume is streamed once, in blocks of planes, and never held: memory is a few slices, however large the file unpacks.
Only if the middle slice is blank, the stream is read a second time.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from medsyn.data.images.pixels import (
    CT_WINDOW,
    MAX_PIXELS,
    MAX_VOLUME_BYTES,
    Image,
    Record,
    finish,
    known_spacing,
    nearest_first,
    refuse_shape,
    square_pixels,
    stretch,
    stretch_percentiles,
    stretch_whole_range,
    warn_of_mask,
)
from medsyn.errors import InputError

_PLANES = ("sagittal", "coronal", "axial")  # the plane across the canonical axis 0 (to the right), 1 (front), 2 (head)
_SIGNAL = 0.05  # of the greatest standard deviation of a slice: a slice below it carries no signal
_THICK = 2.0
_MAX_SIDE = 2**15 - 1  # the limit of NIfTI-1; NIfTI-2 could declare billions of tiny slices
_MAX_OFFSET = 2**24  # bytes of header extensions; nibabel reads them whole
_BLOCK_VALUES = 2**17  # read at a time, but at least one plane: what a processor's cache holds
_AIR = -200.0  # Hounsfield units: a CT contains air, which is below this
_MILLIMETRES = 2  # units of space are the lowest three bits of xyzt_units
_LABELS = (1002, 1003)  # intent codes: a label map, names of anatomy
_STATISTICS = range(2, 25)  # intent codes: correlation, t, F, z, p, ...


def read_nifti(path: Path, modality: str | None = None, volume: int | None = None, whole_range: bool = False) -> Image:
    """Read one slice of a NIfTI file.

    Args:
        path: a `.nii` or `.nii.gz` file.
        modality: what the table says; for CT it decides the window.
        volume: which volume of a 4-D file, from 1; the first, with a warning, unless given.
        whole_range: no window; the image says what its values were.

    Raises:
        InputError: damaged, blank, a label map, not a 2-D, 3-D or 4-D image, without that volume, or of a refused size.
    """
    record = Record(path, whole_range=whole_range)
    try:
        with _open(path) as stream:
            return _read(record, stream, modality, volume)
    except InputError:
        raise
    except (EOFError, gzip.BadGzipFile):
        raise record.refuse("is damaged: its compressed data ends early or fails its checksum") from None
    except Exception as error:  # a parser fed a damaged file raises anything; its message may quote the header
        raise record.refuse(f"is damaged and cannot be read as NIfTI ({type(error).__name__})") from None


def _open(path: Path) -> BufferedIOBase:
    return gzip.GzipFile(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _read(record: Record, stream: BufferedIOBase, modality: str | None, asked: int | None) -> Image:
    image = _load(record, stream)
    _check_intent(record, image)
    volume = _volume(record, image, asked)
    shape = _padded(image.shape)
    orientation = _orientation(record, image)
    across, spacing = _plane(shape, image.header.get_zooms(), orientation)
    if int(image.header["xyzt_units"]) & 7 == _MILLIMETRES:
        record.spacing = known_spacing(*spacing)
    axis = orientation[:, 0].tolist().index(across)  # of the file's axes, the one that the slices follow
    refuse_shape(record, *(shape[other] for other in range(3) if other != axis))
    backwards, middle = orientation[axis, 1] < 0, shape[axis] // 2
    taken = shape[axis] - 1 - middle if backwards else middle
    contrast, stored = _scan(_blocks(stream, image, volume), shape, axis, taken)
    _check_end(stream, image)
    index = _choose_slice(record, contrast[::-1] if backwards else contrast)
    if index != middle:
        taken = shape[axis] - 1 - index if backwards else index
        stored = _slice(_blocks(stream, image, volume), axis, taken)
    values = _scaled(image, stored)
    record.steps.append(f"slice: {_PLANES[across]}, {index + 1} of {shape[axis]}")
    pixels = _levels(record, image, values, modality)
    canonical = nib.orientations.apply_orientation(np.expand_dims(pixels, axis), orientation)
    picture = canonical.take(0, axis=across)[::-1, ::-1].swapaxes(0, 1)
    return finish(record, square_pixels(record, picture, spacing[1], spacing[0]), mark="")


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


def _check_intent(record: Record, image: Any) -> None:
    """Refuse what the header calls labels, warn of what it calls statistics."""
    intent = int(image.header["intent_code"])
    if intent in _LABELS and image.get_data_dtype().names is None:  # a coloured atlas is a picture
        raise record.refuse(f"is not an image of a patient: its header says label map (intent code {intent})")
    if intent in _STATISTICS:
        record.warnings.append(f"the header says that it is a statistical map (intent code {intent}), not an image")


def _volume(record: Record, image: Any, asked: int | None) -> int:
    """The index of the volume that is read; a 3-D file has one."""
    count = math.prod(image.shape[3:])
    if asked is not None and not 1 <= asked <= count:
        raise record.refuse(f"has no volume {asked}: it has {count}")
    if count > 1:
        record.steps.append(f"volume: {asked or 1} of {count}")
        if asked is None:
            record.warnings.append(f"the first of {count} volumes is used; a column 'volume' (1 to {count}) names one")
    return (asked or 1) - 1


def _padded(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of one volume; a 2-D image is a volume of one slice."""
    return shape[0], shape[1], shape[2] if len(shape) > 2 else 1


def _orientation(record: Record, image: Any) -> np.ndarray:
    """nibabel's [3, 2] array: for each axis of the file, its canonical axis and whether it runs along it (1, -1)."""
    if not (image.header["sform_code"] or image.header["qform_code"]):
        record.warnings.append("the header gives no orientation; the NIfTI default (LAS) is assumed")
    elif image.header["sform_code"] and image.header["qform_code"]:
        _compare_forms(record, image)
    finite = np.isfinite(image.affine).all()
    orientation = nib.orientations.io_orientation(image.affine if finite else np.zeros((4, 4)))
    if not np.isfinite(orientation).all():
        record.warnings.append("the header's affine is singular; the axes are assumed to run right, front and up")
        return np.array([[0, 1], [1, 1], [2, 1]])
    codes = "".join(nib.orientations.ornt2axcodes(orientation))
    if codes != "RAS":
        record.steps.append(f"orient: {codes} to RAS")
    return orientation.astype(int)


def _compare_forms(record: Record, image: Any) -> None:
    """Warn if the header's two orientations differ: captions say left and right."""
    try:
        sform, qform = ("".join(map(str, nib.aff2axcodes(form))) for form in (image.get_sform(), image.get_qform()))
    except Exception:  # one of them is no orientation at all: the affine in use is checked next
        return
    if sform != qform and "None" not in sform + qform:
        record.warnings.append(
            f"its sform says {sform} and its qform {qform}: the sform is used, and the picture may be mirrored"
        )


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


def _blocks(stream: BufferedIOBase, image: Any, volume: int) -> Iterator[np.ndarray]:
    """One volume in the order of the file: stored values [planes, y, x], valid until the next block is asked for."""
    dtype, (columns, rows, planes) = image.get_data_dtype(), _padded(image.shape)
    plane = columns * rows * dtype.itemsize
    stream.seek(image.dataobj.offset + volume * planes * plane)
    buffer = memoryview(bytearray(min(planes, max(1, _BLOCK_VALUES // (columns * rows))) * plane))
    for left in range(planes * plane, 0, -len(buffer)):
        block = buffer[:left]
        filled = 0
        while filled < len(block):
            count = stream.readinto(block[filled:])
            if not count:
                raise EOFError
            filled += count
        yield np.frombuffer(block, dtype).reshape(-1, rows, columns)


def _scan(blocks: Iterator[np.ndarray], shape: tuple[int, int, int], axis: int, index: int) -> tuple[np.ndarray, ...]:
    """In one pass, what decides which slice across `axis` is taken, and the slice at `index`.

    Returns:
        [slices] in the file's order: the standard deviation of every slice's finite values, without the header's slope
        (they are only compared with each other); and the slice, as `_slice` gives it.
    """
    sums, parts, done = np.zeros((3, shape[axis])), [], 0
    for block in blocks:
        parts.append(_part(block, axis, index, done))
        places = slice(done, done + len(block)) if axis == 2 else slice(None)
        sums[:, places] += _moments(_grey(block), axis)
        done += len(block)
    count, total, squares = sums
    mean = total / np.maximum(count, 1)
    return np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0.0)), _join(parts, axis)


def _moments(values: np.ndarray, axis: int) -> np.ndarray:
    """[3, slices]: count, sum and sum of squares of the finite ones of values [planes, y, x], for slices across `axis`.

    `axis` is the file's: 0 is x.
    """
    slices = "xyk"[axis]
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.einsum(f"kyx->{slices}", values)
        if np.isfinite(total).all():
            count = np.full(len(total), values.size // len(total))
        else:
            finite = np.isfinite(values)
            values = np.where(finite, values, 0.0)
            count, total = np.einsum(f"kyx->{slices}", finite.astype(int)), np.einsum(f"kyx->{slices}", values)
        return np.stack([count, total, np.einsum(f"kyx,kyx->{slices}", values, values)])


def _slice(blocks: Iterator[np.ndarray], axis: int, index: int) -> np.ndarray:
    """The stored values of the slice at `index` across `axis`, the other two axes in the file's order."""
    parts, done = [], 0
    for block in blocks:
        parts.append(_part(block, axis, index, done))
        done += len(block)
    return _join(parts, axis)


def _part(block: np.ndarray, axis: int, index: int, done: int) -> np.ndarray:
    """A copy of what a block [planes, y, x] has of a slice, after `done` planes: of length 1, or 0, along `axis`."""
    if axis == 2:
        return block[max(0, index - done) : max(0, index - done + 1)].copy()
    return block[:, index : index + 1].copy() if axis == 1 else block[:, :, index : index + 1].copy()


def _join(parts: list[np.ndarray], axis: int) -> np.ndarray:
    return np.concatenate(parts).T.take(0, axis=axis)


def _grey(stored: np.ndarray) -> np.ndarray:
    """Stored values as one float64 each."""
    if stored.dtype.names is not None:
        return _colour(stored).mean(axis=-1)
    return (np.abs(stored) if np.iscomplexobj(stored) else stored).astype(np.float64)


def _colour(stored: np.ndarray) -> np.ndarray:
    """rgb24 and rgba32 as float64 [..., 3] in 0..255; alpha is composited on black, as for PNG."""
    colour = np.stack([stored[name] for name in "RGB"], axis=-1).astype(np.float64)
    return colour * (stored["A"][..., None] / 255) if "A" in (stored.dtype.names or ()) else colour


def _scaled(image: Any, stored: np.ndarray) -> np.ndarray:
    """Stored values with the header's slope and intercept, float64; colour, which has none, as `_colour` gives it."""
    if stored.dtype.names is not None:
        return _colour(stored)
    return _grey(apply_read_scaling(stored, np.float64(image.dataobj.slope), np.float64(image.dataobj.inter)))


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


def _levels(record: Record, image: Any, values: np.ndarray, modality: str | None) -> np.ndarray:
    """Scaled values -> float32 [.., .., C] in 0..1."""
    if values.ndim == 3:
        record.steps.append("colour: RGB")
        return (values / 255).astype(np.float32)
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    if (slope, intercept) != (1.0, 0.0):
        record.steps.append(f"rescale: slope {slope:g}, intercept {intercept:g}")
    finite = np.isfinite(values)
    warn_of_mask(record, values)
    if not finite.all():
        low, high = values[finite].min(), values[finite].max()
        values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
        record.warnings.append(
            f"{int((~finite).sum())} values of the slice are not finite; NaN and -inf became the lowest finite value, "
            "+inf the highest"
        )
    if record.whole_range:
        unit = "HU" if modality == "CT" and values.min() <= _AIR else ""
        return stretch_whole_range(record, values, unit)[..., None]
    if modality == "CT" and values.min() <= _AIR:
        centre, width = CT_WINDOW
        record.steps.append(f"window: {centre:g}/{width:g}, soft tissue, the default for CT")
        return stretch(values, centre - width / 2, centre + width / 2)[..., None]
    if modality == "CT":
        record.warnings.append(f"CT with no value below {_AIR:g}: not in Hounsfield units, so no window applies")
    return stretch_percentiles(record, values, finite)[..., None]
