"""What all readers share: the picture they return, the sizes they refuse, and how stored values become 0..1.

A reader calls `refuse_shape` before it decodes anything and ends with `finish`, which refuses pictures without content.
`fit_square` makes the square that the models take, without distorting or cropping anatomy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from medsyn.errors import InputError

MAX_PIXELS = 2**25  # of one picture: 5792 x 5792, more than the largest mammography and fundus detectors
MAX_FILE_BYTES = 2**29  # of a DICOM file, which is held in memory whole
MAX_INFLATED_BYTES = 2**28  # that a deflated DICOM file may unpack to; also held in memory
MAX_VOLUME_BYTES = 2**31  # of one NIfTI volume, which is read slice by slice and never held: a bound on time
MIN_SIDE = 16
MAX_ASPECT = 8  # longer side : shorter side, of the pixels in the file
MAX_SQUARE_ASPECT = 16  # with square pixels: OCT of 16 x 2 mm is 8 : 1
CT_WINDOW = (40.0, 400.0)  # centre and width in Hounsfield units: soft tissue
PERCENTILES = (0.5, 99.5)
_REDUCING_GAP = 3.0  # pixels along a side that averaging leaves, at least, for one of the result
MASK_VALUES = 16  # the most that a mask is expected to have; pictures of anatomy have more


@dataclass(frozen=True)
class Image:
    """One picture and the steps that made it from the file."""

    pixels: np.ndarray  # float32 [H, W, C], C 1 (grey) or 3 (RGB), values in 0..1
    steps: tuple[str, ...]
    warnings: tuple[str, ...]
    mark: str = ""  # what marks the file as generated, such as "PNG text 'Synthetic'"
    spacing: float | None = None  # millimetres between its pixels, if the file says
    range: tuple[float, float] | None = None  # the values that 0 and 1 stand for, where the whole range was asked for
    unit: str = ""  # of these: HU, or empty where it is not known

    @property
    def synthetic(self) -> bool:
        """The file is marked as generated."""
        return bool(self.mark)


@dataclass
class Record:
    """What a reader has done to one file. Never contains text of a header, which may name a patient."""

    path: Path
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    spacing: float | None = None  # millimetres
    whole_range: bool = False  # grey values are mapped to 0..1 without a window
    range: tuple[float, float] | None = None
    unit: str = ""

    def refuse(self, reason: str) -> InputError:
        """The error that says why this file cannot be used."""
        return InputError(self.path, reason)


def refuse_shape(record: Record, rows: int, columns: int) -> None:
    """Raise `InputError` for a picture of a size that no medical image has; called before anything is decoded."""
    size = f"{columns} x {rows} pixels"
    if min(rows, columns) < MIN_SIDE:
        raise record.refuse(f"is {size}; the shorter side must have at least {MIN_SIDE}")
    if max(rows, columns) > MAX_ASPECT * min(rows, columns):
        raise record.refuse(f"is {size}; one side may be at most {MAX_ASPECT} times the other")
    if rows * columns > MAX_PIXELS:
        raise record.refuse(f"is {size}; at most {MAX_PIXELS:,} pixels are read")


def nearest_first(count: int) -> Iterator[int]:
    """0..count-1, from the middle (count // 2) outwards."""
    middle = count // 2
    for distance in range(count - middle + 1):
        for index in sorted({middle - distance, middle + distance}):
            if 0 <= index < count:
                yield index


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`values` as float32, low..high mapped to 0..1 and clipped there."""
    scaled = np.subtract(values, low, dtype=np.result_type(values, np.float32))  # the one copy: pictures may be large
    scaled /= high - low
    return np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32, copy=False)


def stretch_percentiles(record: Record, values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """`values` mapped to 0..1 between their `PERCENTILES`, so that single hot pixels do not darken the rest.

    Args:
        record: receives the step.
        values: grey values, any unit, finite.
        counted: bool, same shape: the pixels that decide the range (all unless given); padding does not.

    Raises:
        InputError: all counted values are equal.
    """
    inside = values if counted is None else values[counted]
    if inside.size == 0:
        raise record.refuse("is blank: it contains only padding")
    low, high = (float(value) for value in np.percentile(inside, PERCENTILES))
    name = f"percentiles {PERCENTILES[0]:g} to {PERCENTILES[1]:g}"
    if low == high:
        low, high, name = float(inside.min()), float(inside.max()), "least to greatest value"
    if low == high:
        raise record.refuse("is blank: all pixels have the same value")
    record.steps.append(f"scale: {name}, {low:g} to {high:g}")
    return stretch(values, low, high)


def stretch_whole_range(record: Record, values: np.ndarray, unit: str) -> np.ndarray:
    """`values`, finite, mapped to 0..1 between the least and the greatest; the record is told both, and their unit."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise record.refuse("is blank: all pixels have the same value")
    record.steps.append(f"scale: least to greatest value, {low:g} to {high:g}")
    record.range, record.unit = (low, high), unit
    return stretch(values, low, high)


def resize(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """float32 [H, W, C] in 0..1 -> [rows, columns, C], bicubic, with antialiasing where it shrinks.

    What shrinks by `_REDUCING_GAP` x 2 or more is averaged over whole blocks of pixels before it is filtered.
    """
    channels = [
        PillowImage.fromarray(np.ascontiguousarray(pixels[..., channel], dtype=np.float32)).resize(
            (columns, rows), PillowImage.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP
        )
        for channel in range(pixels.shape[2])
    ]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], axis=2), 0.0, 1.0)


def known_spacing(rows: float, columns: float) -> float | None:
    """The spacing of square pixels (`square_pixels` enlarges the coarser axis); None if the numbers are none."""
    known = np.isfinite([rows, columns]).all() and min(rows, columns) > 0
    return float(min(rows, columns)) if known else None


def square_pixels(record: Record, pixels: np.ndarray, row_spacing: float, column_spacing: float) -> np.ndarray:
    """The picture with the coarser axis enlarged so that pixels are square.

    Args:
        record: receives the step.
        pixels: float32 [H, W, C] in 0..1.
        row_spacing: distance between rows; any unit.
        column_spacing: distance between columns, same unit.
    """
    if not (np.isfinite([row_spacing, column_spacing]).all() and row_spacing > 0 and column_spacing > 0):
        return pixels
    ratio = row_spacing / column_spacing
    if 0.99 < ratio < 1.01:
        return pixels
    rows, columns = pixels.shape[:2]
    rows, columns = (round(rows * ratio), columns) if ratio > 1 else (rows, round(columns / ratio))
    stored, becomes = f"{pixels.shape[1]} x {pixels.shape[0]} pixels", f"{columns} x {rows}"
    spacing = f"spacing {row_spacing:g} x {column_spacing:g}"
    if max(rows, columns) > MAX_SQUARE_ASPECT * min(rows, columns):
        limit = f"one side may then be at most {MAX_SQUARE_ASPECT} times the other"
        raise record.refuse(f"is {stored}, and {becomes} with square pixels ({spacing}); {limit}")
    if rows * columns > MAX_PIXELS:
        raise record.refuse(
            f"is {stored}, and {becomes} with square pixels ({spacing}); at most {MAX_PIXELS:,} pixels are read"
        )
    record.steps.append(f"square pixels: {spacing}, now {becomes}")
    return resize(pixels, rows, columns)


def warn_of_mask(record: Record, values: np.ndarray) -> None:
    """Warn if grey values [rows, columns] are so few that they are classes and not brightness."""
    part = values[:: 1 + values.shape[0] // 256, :: 1 + values.shape[1] // 256]
    if len(np.unique(part)) <= MASK_VALUES and (count := len(np.unique(values))) <= MASK_VALUES:
        record.warnings.append(f"has only {count} different values: is it a mask or a label map, not an image?")


def finish(record: Record, pixels: np.ndarray, mark: str) -> Image:
    """The picture; raises `InputError` if it is blank (less than two of 255 grey levels between its extremes).

    `mark` is what marks it as generated, empty if nothing does.
    """
    pixels = np.ascontiguousarray(pixels[..., None] if pixels.ndim == 2 else pixels, dtype=np.float32)
    if not float(pixels.max()) - float(pixels.min()) >= 2 / 255:
        raise record.refuse("is blank: all pixels have the same value")
    told = tuple(record.steps), tuple(record.warnings)
    return Image(pixels, *told, mark, record.spacing, record.range, record.unit)


def fit_square(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """The whole picture, centred on a square of its background, resized with antialiasing.

    An OCT scan is about 512 x 190: squeezed into a square, a healthy retina looks swollen. The bars beside the picture
    are, per channel, as dark as the darkest twentieth of the two edges that they continue: black beside black, white
    beside white, and dark where anatomy reaches the edge (its median would put grey bars beside most chest X-rays).
    Nothing is cropped and nothing is flipped (captions say left and right).

    Args:
        pixels: float32 [H, W, C] in 0..1, C 1 or 3.
        resolution: R, the side of the result.

    Returns:
        float32 [R, R, 3] in 0..1; grey is repeated.
    """
    height, width = pixels.shape[:2]
    scale = resolution / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    edges = pixels[[0, -1]] if height < width else pixels[:, [0, -1]]
    background = np.percentile(edges, 5, axis=(0, 1)).astype(np.float32)
    square = np.empty((resolution, resolution, 3), dtype=np.float32)
    square[:] = background
    top, left = (resolution - rows) // 2, (resolution - columns) // 2
    square[top : top + rows, left : left + columns] = resize(pixels, rows, columns)
    return square
