"""Which frame of a DICOM image is taken, and its stored values: the bits and the colours that the pixels really have.

Two things are not left to pydicom. It takes the lowest bits wherever the header says that they are (overlays and
left-aligned values are in the others), and it believes the header's colour space where a JPEG stream says another.
"""

from __future__ import annotations

import importlib
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import convert_color_space, pixel_array
from pydicom.uid import (
    HTJ2K,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from medsyn.data.images.pixels import MAX_PIXELS, Record, nearest_first

_MAX_PIXELS_TRIED = 2**31  # in blank frames: a bound on time
_LOSSY_JPEG = set(JPEGTransferSyntaxes) - {JPEGLossless, JPEGLosslessSV1}
_OVERLAYS = range(0x6000, 0x6020, 2)  # groups of the overlays that a file may have
OVERLAY_POSITIONS = [group << 16 | 0x0102 for group in _OVERLAYS]  # the bit of the pixel that an overlay is in, or 0


def choose_frame(record: Record, dataset: Dataset, frames: int) -> tuple[int, np.ndarray]:
    """Index and stored values of the frame with content that is nearest the middle.

    The values are [rows, columns], or [rows, columns, 3] RGB.

    Raises:
        InputError: a frame cannot be decoded, or all that were looked at are blank.
    """
    tried = max(1, _MAX_PIXELS_TRIED // (int(dataset.Rows) * int(dataset.Columns)))
    for index in islice(nearest_first(frames), tried):
        of_frame = Record(record.path)
        stored = _decode(of_frame, dataset, index, frames)
        if not _is_blank(stored):
            break
    else:
        if tried < frames:
            raise record.refuse(f"is blank in the {tried:,} of its {frames:,} frames that are nearest the middle")
        where = f"in each of its {frames:,} frames " if frames > 1 else ""
        raise record.refuse(f"is blank: {where}all pixels have the same value")
    record.steps += of_frame.steps
    record.warnings += of_frame.warnings
    if index != frames // 2:
        record.warnings.append(
            f"the middle frame is blank; the nearest one with content, {index + 1} of {frames}, is used"
        )
    return index, stored


def _is_blank(stored: np.ndarray) -> bool:
    values = stored if stored.dtype.kind != "f" else stored[np.isfinite(stored)]
    return not (values.size and values.min() < values.max())


def _decode(record: Record, dataset: Dataset, index: int, frames: int) -> np.ndarray:
    stream, parameters = _codestream(record, dataset, index, frames)
    is_colour = dataset.SamplesPerPixel == 3
    kept: dict[str, Any] = {} if is_colour else {"correct_unused_bits": False}  # `_stored_bits` does it
    try:
        stored = pixel_array(dataset, index=index, raw=True, **kept)
    except Exception as error:  # decoders raise anything; their message may quote the header
        syntax = dataset.file_meta.TransferSyntaxUID
        raise record.refuse(
            f"has pixel data that cannot be decoded as {syntax.name} ({type(error).__name__})"
        ) from None
    return _rgb(record, dataset, stream, stored) if is_colour else _stored_bits(record, dataset, parameters, stored)


def _codestream(record: Record, dataset: Dataset, index: int, frames: int) -> tuple[bytes, dict[str, Any]]:
    """A frame's JPEG, JPEG-LS or JPEG 2000 stream and what it says of itself; empty for other syntaxes.

    Refuses a stream larger than the header declares: its decoder would allocate all of it.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in (*JPEG2000TransferSyntaxes, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL):
        plugin = "openjpeg"
    elif syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        plugin = "libjpeg"
    else:
        return b"", {}
    try:
        stream = get_frame(dataset.PixelData, index, number_of_frames=frames)
        parameters = importlib.import_module(plugin).get_parameters(stream)
    except Exception:  # another plugin is installed, or the stream is damaged: decoding reports it
        return b"", {}
    rows, columns = parameters["rows"], parameters["columns"]
    if rows * columns > MAX_PIXELS:
        raise record.refuse(
            f"contains a compressed frame of {columns} x {rows} pixels; at most {MAX_PIXELS:,} are read"
        )
    return stream, parameters


# --- bits -----------------------------------------------------------------------------------------------------------


def _stored_bits(record: Record, dataset: Dataset, parameters: dict[str, Any], stored: np.ndarray) -> np.ndarray:
    """The bits of each pixel that the header calls stored, sign extended (PS3.5 8.1.1)."""
    if stored.dtype.kind == "f" or int(dataset.BitsAllocated) < 8:
        return stored
    container, bits = stored.dtype.itemsize * 8, int(dataset.BitsStored)
    if not 0 < bits < container:
        return stored
    unsigned = stored.view(f"u{stored.dtype.itemsize}")
    lowest = _lowest_bit(record, dataset, container, bits, int(parameters.get("precision") or container))
    if lowest:
        if (unsigned & (2**lowest - 1)).any() and not (unsigned >> bits).any():
            raise record.refuse(
                f"says that its values are in bits {lowest} to {lowest + bits - 1}, but they are in bits 0 to "
                f"{bits - 1}: the header's HighBit (0028,0102) is wrong"
            )
        record.steps.append(f"bits: {lowest} to {lowest + bits - 1} of {container}")
    above = unsigned >> (lowest + bits)
    if dataset.PixelRepresentation == 1:  # ones above a negative value are its sign
        above = np.where(above == 2 ** (container - lowest - bits) - 1, 0, above)
    if above.any():
        if any(dataset.get(tag) is not None and dataset[tag].value for tag in OVERLAY_POSITIONS):
            record.steps.append("overlay: the bits of overlays are left out")
        else:
            record.warnings.append(
                f"{np.count_nonzero(above):,} pixels have bits above the {bits} that the header calls stored; they are "
                "left out (overlays, or BitsStored is wrong)"
            )
    left = np.left_shift(stored, container - bits - lowest)
    return np.right_shift(left, container - bits, out=left)


def _lowest_bit(record: Record, dataset: Dataset, container: int, bits: int, precision: int) -> int:
    """The lowest of the stored bits, by HighBit; 0 for a compressed stream that has no more than the stored bits."""
    highest = dataset.get("HighBit")
    if highest is None or precision <= bits:
        return 0
    if not bits - 1 <= int(highest) < container:
        record.warnings.append(
            f"the header's HighBit {int(highest)} does not fit {bits} stored bits of {container}; the lowest are read"
        )
        return 0
    return int(highest) + 1 - bits


# --- colour ---------------------------------------------------------------------------------------------------------


def _rgb(record: Record, dataset: Dataset, stream: bytes, stored: np.ndarray) -> np.ndarray:
    """Colours as RGB, by what the stream says of itself, else by the header, if its values can be what that says."""
    syntax = dataset.file_meta.TransferSyntaxUID
    tagged = str(dataset.PhotometricInterpretation)
    tag_says_ybr = tagged.startswith("YBR_FULL")  # the decoder has undone YBR_RCT and YBR_ICT
    ybr = _jpeg_says_ybr(stream) if syntax in JPEGTransferSyntaxes else None
    if ybr is None:
        ybr = tag_says_ybr
        if stored.dtype == np.uint8 and (ybr or syntax in _LOSSY_JPEG):
            ybr = _share_of_colours(stored) > (0.9 if ybr else 0.99)
        if ybr != tag_says_ybr:
            record.warnings.append(
                f"the header says {tagged}, but the values are those of {'YCbCr' if ybr else 'RGB'} and are read as "
                "such; compare the colours with those that another viewer shows"
            )
    elif ybr != tag_says_ybr:
        record.steps.append(f"colour: {'YCbCr' if ybr else 'RGB'}, as the JPEG stream says")
    return convert_color_space(stored, "YBR_FULL", "RGB") if ybr else stored


def _jpeg_says_ybr(stream: bytes) -> bool | None:
    """Whether a JPEG stream's three components are YCbCr (True) or RGB (False); None if it does not say."""
    try:
        picture: Any = PillowImage.open(BytesIO(stream), formats=("JPEG",))
        names, *sampling = zip(*(layer[:3] for layer in picture.layer), strict=True)
    except Exception:  # not a stream that Pillow knows, or damaged: decoding reports it
        return None
    if bytes(names) in (b"RGB", b"rgb"):
        return False
    if "jfif" in picture.info:
        return True
    if (transform := picture.info.get("adobe_transform")) is not None:
        return bool(transform)
    return True if any(len(set(factors)) > 1 for factors in sampling) else None  # nobody subsamples RGB


def _share_of_colours(stored: np.ndarray) -> float:
    """The share of 8-bit pixels that are colours if they are taken for YCbCr.

    Black and white as RGB, which most medical pictures have at their edge, would be far outside of all colours.
    """
    luma, blue, red = np.moveaxis(stored[::3, ::3].astype(np.float32), 2, 0)
    blue, red = blue - 128, red - 128
    channels = np.stack([luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue])
    return float(((channels > -24) & (channels < 255 + 24)).all(axis=0).mean())
