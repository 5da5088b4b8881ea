"""DICOM files: what is refused from the header, what it warns of, and the picture of one frame.

Only the elements in `_TAGS` are ever read: names, dates and identifiers of patients do not even reach memory, and no
message quotes a header's text. `medsyn.data.images.dicom_frames` decodes the frame, `medsyn.data.images.dicom_window`
maps its grey values to 0..1.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    RTDoseStorage,
    SegmentationStorage,
)

from medsyn.data.images.dicom_frames import OVERLAY_POSITIONS, choose_frame
from medsyn.data.images.dicom_window import NO_NUMBER, frame_header, grey_levels, number
from medsyn.data.images.pixels import (
    MAX_FILE_BYTES,
    MAX_INFLATED_BYTES,
    Image,
    Record,
    finish,
    known_spacing,
    refuse_shape,
    square_pixels,
    warn_of_mask,
)
from medsyn.errors import InputError
from medsyn.modality_names import canonical_modality

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LAYOUT = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "SamplesPerPixel")
_WARNED_OF = {
    "BurnedInAnnotation": ("YES", "the header says that text is burned into the pixels; it may name the patient"),
    "RecognizableVisualFeatures": ("YES", "the header says that the patient can be recognised in the picture"),
    "PresentationIntentType": (
        "FOR PROCESSING",
        "the header says FOR PROCESSING: raw values of the detector, which do not look like what radiologists see",
    ),
}
_TAGS: list[Any] = [
    *_LAYOUT,
    *_WARNED_OF,
    *("SOPClassUID", "Modality", "SyntheticData", "NumberOfFrames", "PlanarConfiguration"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *OVERLAY_POSITIONS,
]
_LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")  # not in pydicom's dictionary
_NO_PICTURES = (SegmentationStorage, _LABEL_MAP, RTDoseStorage)  # their pixels are a mask or a dose
_PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_OTHER_MODALITIES = ("US", "NM", "PT", "ES", "SM")  # named in a warning; any other code is not quoted

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its log lines quote header values


def read_dicom(path: Path, modality: str | None = None, whole_range: bool = False) -> Image:
    """Read one frame of a DICOM image: the middle one, or the nearest to it that is not blank.

    Args:
        path: the file.
        modality: what the table says; used only if the header does not name one.
        whole_range: no window; the image says what its values were.

    Raises:
        InputError: not an image, damaged, blank, or of a refused size.
    """
    record = Record(path, whole_range=whole_range)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            return _read(record, modality)
    except InputError:
        raise
    except Exception as error:
        # A parser fed a damaged file raises anything, and its message may quote the header: neither it nor the
        # chained traceback may be shown.
        raise record.refuse(f"is damaged and cannot be read as DICOM ({type(error).__name__})") from None


def _read(record: Record, modality: str | None) -> Image:
    dataset = _load(record)
    _check_modality(record, dataset, modality)
    _check_use(record, dataset)
    frames = _frame_count(record, dataset)
    index, stored = choose_frame(record, dataset, frames)
    if frames > 1:
        record.steps.append(f"frame: {index + 1} of {frames}")
    header = frame_header(dataset, index)
    if stored.ndim == 3:
        pixels = stored.astype(np.float32) / (2 ** int(dataset.BitsStored) - 1)
        record.steps.append("colour: RGB")
    elif dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        pixels = coloured.astype(np.float32) / np.iinfo(coloured.dtype).max
        record.steps.append("colour: palette applied")
    else:
        is_ct = (canonical_modality(str(header.get("Modality", ""))) or modality) == "CT"
        warn_of_mask(record, stored)
        pixels = grey_levels(record, header, stored, is_ct)[..., None]
    pixels = square_pixels(record, pixels, *_spacing(record, header))
    return finish(record, pixels, "SyntheticData" if dataset.get("SyntheticData") == "YES" else "")


# --- the file: refused by its header, or loaded ---------------------------------------------------------------------


def _load(record: Record) -> Dataset:
    """The file's image elements with its pixel data, still encoded."""
    size = record.path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise record.refuse(f"has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    with record.path.open("rb") as stream:
        part10 = stream.read(132)[128:] == b"DICM"
        stream.seek(132 if part10 else 0)
        _check_inflated_size(record, stream)
    header = dcmread(record.path, stop_before_pixels=True, specific_tags=_TAGS, force=not part10)
    _check_header(record, header, part10)
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise record.refuse("does not name its transfer syntax, so its pixels cannot be decoded")
    if not part10:
        record.warnings.append("there is no DICM preamble; read as DICOM anyway")
    _check_decoder(record, syntax)
    dataset = dcmread(record.path, specific_tags=[*_TAGS, *_PIXELS], force=not part10)
    present = [keyword for keyword in _PIXELS if keyword in dataset]
    if not present:
        raise record.refuse("has no pixel data, or is truncated")
    if not syntax.is_encapsulated:
        expected, found = get_expected_length(dataset), len(dataset[present[0]].value)
        if found < expected:
            raise record.refuse(f"has {found:,} bytes of pixel data, but its header declares {expected:,}")
    return dataset


def _check_inflated_size(record: Record, stream: BinaryIO) -> None:
    """Refuse a deflated data set that unpacks to more than the limit, holding one piece of it at a time.

    `stream` is at the file meta information, which is never deflated.
    """
    meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    total, packed = 0, stream.read(1 << 16)
    while packed and not unpacker.eof:
        total += len(unpacker.decompress(packed, 1 << 20))
        if total > MAX_INFLATED_BYTES:
            raise record.refuse(f"unpacks to more than {MAX_INFLATED_BYTES:,} bytes, the most that are read")
        packed = unpacker.unconsumed_tail or stream.read(1 << 16)


def _check_header(record: Record, header: Dataset, part10: bool) -> None:
    """Refuse what is not a picture, by the name of its SOP class, and pictures of an absurd size."""
    kind = UID(str(header.get("SOPClassUID", "")))
    known = kind.name if kind.name != kind else "of an unknown SOP class"
    known = "Label Map Segmentation Storage" if kind == _LABEL_MAP else known
    if not part10 and kind.name == kind:
        raise record.refuse("is not DICOM: it has no DICM preamble and no known SOP class")
    if kind in _NO_PICTURES:
        raise record.refuse(f"is not an image of a patient: {known}")
    missing = [keyword for keyword in _LAYOUT if header.get(keyword) is None]
    if missing:
        raise record.refuse(f"is not an image, or its header is truncated: {known}, without {', '.join(missing)}")
    if header.PhotometricInterpretation not in _PHOTOMETRIC:
        raise record.refuse(f"has an unsupported photometric interpretation; supported are {', '.join(_PHOTOMETRIC)}")
    refuse_shape(record, int(header.Rows), int(header.Columns))


def _check_decoder(record: Record, syntax: UID) -> None:
    named = f"transfer syntax {syntax.name} ({syntax})" if syntax.is_valid else "its transfer syntax"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise record.refuse(f"{named} cannot be decoded: pydicom has no decoder for it") from None
    if not decoder.is_available:
        raise record.refuse(f"{named} needs a plugin that is not installed: {'; '.join(decoder.missing_dependencies)}")


def _check_modality(record: Record, dataset: Dataset, modality: str | None) -> None:
    """Warn if the header's modality is not one of the five, or not the table's."""
    code = str(dataset.get("Modality", ""))
    said = canonical_modality(code)
    if code in _OTHER_MODALITIES:
        record.warnings.append(f"the header's modality {code} is not one of the five")
    elif said and modality and said != modality:
        record.warnings.append(f"the header's modality is {said}, the table says {modality}")


def _check_use(record: Record, dataset: Dataset) -> None:
    """Warn of what the header says against showing the picture to a model: a patient's name or face, raw values."""
    for keyword, (value, warning) in _WARNED_OF.items():
        if str(dataset.get(keyword, "")).strip().upper() == value:
            record.warnings.append(warning)


def _frame_count(record: Record, dataset: Dataset) -> int:
    frames = number(record, dataset, "NumberOfFrames")
    if frames is not None and frames < 1:
        record.warnings.append(f"the header declares {frames:g} frames; read as one")
        dataset.NumberOfFrames = 1
    return max(1, int(frames or 1))


def _spacing(record: Record, header: Dataset) -> tuple[float, float]:
    """Distance between rows and between columns, in any common unit; equal if the header gives none."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        try:
            value = header.get(keyword)
            if isinstance(value, MultiValue) and len(value) == 2:
                rows, columns = float(value[0]), float(value[1])
                if keyword == "PixelSpacing":  # the detector's is not that of the patient, a ratio has no unit
                    record.spacing = known_spacing(rows, columns)
                return rows, columns
        except NO_NUMBER:
            record.warnings.append(f"the header's {keyword} is not a number and is ignored")
    return 1.0, 1.0
