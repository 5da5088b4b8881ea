"""Images as the page holds them: levels of 8 or 16 bits, in a PNG file without any text.

A file's own levels are kept where it has more than 8 bits, so that a rater can choose the window. Nothing else of a
file is: no text, no time, no compression of its own.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image as PillowImage

from medsyn.data.images.pixels import PERCENTILES, fit_square
from medsyn.data.images.read import Image, format_of, read_image
from medsyn.errors import InputError
from medsyn.generation.write.png import quantise
from medsyn.rating.formats import ShownImage
from medsyn.rating.sources import Source

_FEWEST, _MOST = 64, 65535  # of whole values whose levels are the values themselves; fewer may be fractions
MOST_SIDE = 1024  # pixels of an image of the page: a larger one is shrunk


@dataclass(frozen=True)
class Levels:
    """A picture in whole levels, and which of them are shown from black to white at first."""

    values: np.ndarray  # uint8 or uint16 [H, W], or uint8 [H, W, 3]
    low: int
    high: int
    offset: int = 0  # a level plus this is a value in `unit`
    unit: str = ""
    is_marked: bool = False  # its file says that it was generated

    @property
    def is_grey(self) -> bool:
        """Whether it has one channel."""
        return self.values.ndim == 2


def of_generated(source: Source) -> Levels:
    """A PNG file that a campaign has made, level by level.

    Raises:
        InputError: it cannot be read, or is no picture of 8 or 16 bits.
    """
    try:
        with PillowImage.open(io.BytesIO(source.content()), formats=("PNG",)) as opened:
            deep = opened.mode.startswith("I")
            values = np.asarray(opened if deep or opened.mode == "L" else opened.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders of damaged files raise anything
        raise InputError(source.place, f"is damaged and cannot be decoded ({type(error).__name__})") from None
    return _of_range(values.astype(np.uint16) if deep else _grey_if_equal(values))


def of_file(source: Source) -> Levels:
    """An image file of any kind, with its depth.

    Raises:
        InputError: as `read_image` does.
    """
    image = read_image(source.file, source.modality, source.volume)
    if format_of(source.file) == "PNG" and (stored := _stored_16_bit(source)) is not None:
        levels = _of_range(stored, PERCENTILES)
    elif image.pixels.shape[2] == 3 or format_of(source.file) in ("PNG", "JPEG"):
        levels = _of_range(_grey_if_equal(np.rint(image.pixels * 255).astype(np.uint8)))
    else:
        levels = _of_values(image, read_image(source.file, source.modality, source.volume, whole_range=True))
    return replace(_shrunk(levels), is_marked=image.synthetic)


def like_generated(source: Source, side: int) -> Levels:
    """A real image in the size, depth and colours that generated images have, so that none of these tells it.

    Args:
        source: the image.
        side: of the generated images.

    Raises:
        InputError: as `read_image` does.
    """
    pixels = fit_square(read_image(source.file, source.modality, source.volume).pixels, side)
    written = quantise(pixels, source.modality)
    return _of_range(_grey_if_equal(written))


def encode(levels: Levels) -> bytes:
    """The PNG file of the page; of a colour picture red and blue without green (modulo 256), a tenth smaller."""
    stream = io.BytesIO()
    values = levels.values
    if not levels.is_grey:
        values = np.stack([values[..., 0] - values[..., 1], values[..., 1], values[..., 2] - values[..., 1]], axis=2)
    PillowImage.fromarray(values).save(stream, format="PNG", compress_level=9)
    return stream.getvalue()


def describe(levels: Levels, modality: str, png: bytes) -> ShownImage:
    """What the set says of an image."""
    height, width = levels.values.shape[:2]
    return ShownImage(
        modality=modality,
        width=width,
        height=height,
        bits=16 if levels.values.dtype == np.uint16 else 8,
        channels=1 if levels.is_grey else 3,
        low=levels.low,
        high=levels.high,
        offset=levels.offset,
        unit=levels.unit,
        sha256=hashlib.sha256(png).hexdigest(),
    )


def _of_range(values: np.ndarray, percentiles: tuple[float, float] | None = None) -> Levels:
    """8 bits as they are; 16 bits between their least and greatest value, or between percentiles."""
    if values.dtype == np.uint8:
        return Levels(values, 0, 255)
    low, high = (int(one) for one in (np.percentile(values, percentiles or (0, 100))))
    return Levels(values, low, max(high, low + 1))


def _of_values(shown: Image, whole: Image) -> Levels:
    """A grey picture of DICOM or NIfTI with all its values: a level for each unit, or 65,536 for their range.

    Args:
        shown: the picture through the window that it is usually shown with.
        whole: the same from its least to its greatest value.
    """
    least, greatest = whole.range or (0.0, 1.0)
    is_whole = _FEWEST <= greatest - least <= _MOST and float(least).is_integer()
    top = round(greatest - least) if is_whole else _MOST
    values = np.rint(whole.pixels[..., 0].astype(np.float64) * top).astype(np.uint16)
    low, high = _window(values, shown.pixels[..., 0], top)
    unit = whole.unit if is_whole else ""
    return Levels(values, low, high, round(least) if unit else 0, unit)


def _window(values: np.ndarray, shown: np.ndarray, top: int) -> tuple[int, int]:
    """The levels that are black and white where `values` look like `shown`: by the darkest and brightest of the greys.

    They may be levels that the picture does not have.
    """
    inside = (shown > 0) & (shown < 1)
    if not inside.any() or (first := int(values[inside].min())) == (last := int(values[inside].max())):
        return 0, top
    dark, bright = float(shown[inside].min()), float(shown[inside].max())
    width = (last - first) / (bright - dark)
    low = round(first - dark * width)
    return low, max(low + 1, round(first - dark * width + width))


def _grey_if_equal(values: np.ndarray) -> np.ndarray:
    """[H, W] of a picture whose channels are all equal, else [H, W, 3]."""
    if values.ndim == 2:
        return values
    return np.ascontiguousarray(values[..., 0]) if (values == values[..., :1]).all() else values


def _stored_16_bit(source: Source) -> np.ndarray | None:
    """The levels [H, W] of a grey PNG file of 16 bits, upright; None of any other."""
    from PIL import ImageOps

    with PillowImage.open(io.BytesIO(source.content()), formats=("PNG",)) as opened:
        if not opened.mode.startswith("I"):
            return None
        return np.asarray(ImageOps.exif_transpose(opened)).astype(np.uint16)


def _shrunk(levels: Levels) -> Levels:
    """The picture with at most `MOST_SIDE` pixels a side."""
    height, width = levels.values.shape[:2]
    if max(height, width) <= MOST_SIDE:
        return levels
    scale = MOST_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    planes = levels.values[..., None] if levels.is_grey else levels.values
    resized = [
        np.asarray(
            PillowImage.fromarray(planes[..., one].astype(np.float32)).resize(size, PillowImage.Resampling.LANCZOS)
        )
        for one in range(planes.shape[2])
    ]
    top = np.iinfo(levels.values.dtype).max
    values = np.clip(np.rint(np.stack(resized, axis=2)), 0, top).astype(levels.values.dtype)
    return replace(levels, values=values[..., 0] if levels.is_grey else values)
