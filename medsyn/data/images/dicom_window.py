"""How the stored grey values of a DICOM frame become 0..1, in the order of the standard (PS3.3 C.11, PS3.4 N.2).

1. Modality: the modality LUT, or rescale slope and intercept (of the frame, in enhanced multi-frame objects).
2. Values of interest, the first of: the file's VOI LUT; the file's first window; for CT in Hounsfield
   units, soft tissue (40/400); for images of up to eight bits, the values as stored; else the percentiles
   of everything that is not padding. The file's own choice wins because it was made for this image.
3. MONOCHROME1 is inverted.
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from medsyn.data.images.pixels import CT_WINDOW, Record, stretch, stretch_percentiles, stretch_whole_range

_FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
NO_NUMBER = (ValueError, TypeError, OverflowError)  # pydicom, of a text such as "40,5" where a number should be


def frame_header(dataset: Dataset, index: int) -> Dataset:
    """The data set with what the functional groups say about frame `index` at its top level.

    A frame's own group comes before the shared one, and both before the top level.
    """
    header = Dataset(dataset)
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *own[index : index + 1]):
        for name in _FRAME_GROUPS:
            for item in (group.get(name) or [])[:1]:
                header.update(item)
    return header


def number(record: Record, header: Dataset, keyword: str) -> float | None:
    """The first finite number of an element, None if it is absent, empty, not finite or, with a warning, no number."""
    try:
        value = header.get(keyword)
        if value is not None and not isinstance(value, str | bytes) and hasattr(value, "__len__"):
            value = value[0] if len(value) else None
        if value is None or value == "":
            return None
        value = float(value)
    except NO_NUMBER:
        record.warnings.append(f"the header's {keyword} is not a number and is ignored")
        return None
    return value if np.isfinite(value) else None


def grey_levels(record: Record, header: Dataset, stored: np.ndarray, is_ct: bool) -> np.ndarray:
    """Stored values [rows, columns] -> float32 in 0..1.

    Args:
        record: receives steps and warnings.
        header: of the frame (`frame_header`).
        stored: the decoded values.
        is_ct: values with a rescale are Hounsfield units; without one, no window applies.

    Raises:
        InputError: all values are equal, or the rescale slope is 0.
    """
    values, in_units = _modality_values(record, header, stored)
    padding = _padding(record, header, stored)
    if not np.isfinite(values).all():
        finite = np.isfinite(values)
        record.warnings.append(f"{int((~finite).sum())} pixels are not finite; they are shown as the lowest value")
        values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
    if record.whole_range:
        is_plain = is_ct and in_units and header.PhotometricInterpretation != "MONOCHROME1"
        shown: np.ndarray | None = stretch_whole_range(record, values, "HU" if is_plain else "")
    else:
        shown = _shown_values(record, header, values, in_units, is_ct)
    if shown is not None and not shown.max() > shown.min():
        record.warnings.append(f"{record.steps.pop()} gives a blank picture and is ignored")
        shown = None
    if shown is None:
        shown = stretch_percentiles(record, values, None if padding is None else ~padding)
    if header.PhotometricInterpretation == "MONOCHROME1":
        record.steps.append("invert: MONOCHROME1")
        shown = 1 - shown
    return shown


def _modality_values(record: Record, header: Dataset, stored: np.ndarray) -> tuple[np.ndarray, bool]:
    """The values in the modality's unit, and whether the header defines that unit."""
    values: np.ndarray = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
    if header.get("ModalityLUTSequence"):
        record.steps.append("rescale: modality LUT")
        return _look_up(header.ModalityLUTSequence[0], stored)[0], True
    told = len(record.warnings)
    slope, intercept = number(record, header, "RescaleSlope"), number(record, header, "RescaleIntercept")
    if (slope is None and intercept is None) or len(record.warnings) > told:  # half a rescale is none
        return values, False
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 0:
        raise record.refuse("has a rescale slope of 0, which makes every pixel the same")
    record.steps.append(f"rescale: slope {slope:g}, intercept {intercept:g}")
    return values * slope + intercept, True


def _shown_values(
    record: Record, header: Dataset, values: np.ndarray, in_units: bool, is_ct: bool
) -> np.ndarray | None:
    """`values` through the window that applies, float32 in 0..1; None if the percentiles must decide."""
    centre, width = number(record, header, "WindowCenter"), number(record, header, "WindowWidth")
    if is_ct and not in_units:
        record.warnings.append("CT without rescale slope and intercept: not in Hounsfield units, so no window applies")
    elif header.get("VOILUTSequence"):
        record.steps.append("window: the file's VOI LUT")
        levels, bits = _look_up(header.VOILUTSequence[0], np.rint(values))
        return stretch(levels, 0, 2**bits - 1)
    elif centre is not None and width is not None and width > 0:
        record.steps.append(f"window: {centre:g}/{width:g}, the file's")
        return _window(values, centre, width, str(header.get("VOILUTFunction") or "LINEAR"))
    else:
        if width is not None:
            record.warnings.append(f"the file's window of width {width:g} is ignored")
        if is_ct:
            record.steps.append(f"window: {CT_WINDOW[0]:g}/{CT_WINDOW[1]:g}, soft tissue, the default for CT")
            return _window(values, *CT_WINDOW, "LINEAR")
    bits = int(header.get("BitsStored") or 32)
    if bits <= 8 and values.min() >= 0 and values.max() < 2**bits:
        record.steps.append(f"scale: {bits} bits as they are")
        return stretch(values, 0, 2**bits - 1)
    return None


def _window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """VOI LUT functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return (1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))).astype(np.float32)
    if function == "LINEAR_EXACT" or width <= 1:  # LINEAR is not defined for widths up to 1
        return stretch(values, centre - width / 2, centre + width / 2)
    return stretch(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _look_up(table: Dataset, values: np.ndarray) -> tuple[np.ndarray, int]:
    """`values` through a lookup table, and the bits of its entries.

    Not by pydicom: it computes in the type of the table, so a table of 8 bits wraps around at input 256.
    """
    entries, first, bits = (int(part) for part in table.LUTDescriptor)
    if first >= 2**15 and values.min() < 0:  # written as unsigned beside signed pixels
        first -= 2**16
    if not 1 <= bits <= 16:
        raise ValueError("LUTDescriptor")
    data = table.LUTData
    if isinstance(data, bytes):
        big_endian = table.original_encoding[1] is False
        data = np.frombuffer(data, dtype=">u2" if big_endian else "<u2")
    levels = np.atleast_1d(np.asarray(data, dtype=np.float32))[: entries or 2**16]
    return levels[np.clip(values - first, 0, len(levels) - 1).astype(np.intp)], bits


def _padding(record: Record, header: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """bool [rows, columns]: pixels that fill the frame around the picture (PS3.3 C.7.5.1.1.2), None without any.

    The padding has the sign of the pixels, whatever its VR says: US 63536 beside signed pixels of 16 bits is -2000.
    """
    value = number(record, header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(record, header, "PixelPaddingRangeLimit")
    low, high = sorted(_signed_as(stored, one) for one in (value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _signed_as(stored: np.ndarray, value: float) -> float:
    """A number as the type of the pixels has it: the same bits, with or without a sign."""
    if stored.dtype.kind == "f" or not value.is_integer():
        return value
    lowest, count = int(np.iinfo(stored.dtype).min), 2 ** (8 * stored.dtype.itemsize)
    return float((int(value) - lowest) % count + lowest)
