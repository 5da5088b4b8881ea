"""PNG and JPEG files of any bit depth and mode.

Up to eight bits are shown as stored. Sixteen-bit files seldom use their whole range (a CT has 12 bits), so they are
shown between their percentiles: one burned-in marker at 65535 would make the rest black. Alpha of any kind is
composited on black; the EXIF orientation is applied.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, ImageOps
from PIL import Image as PillowImage

from medsyn.data.images.generator_marks import find_mark
from medsyn.data.images.pixels import (
    MAX_PIXELS,
    Image,
    Record,
    finish,
    refuse_shape,
    stretch_percentiles,
    warn_of_mask,
)
from medsyn.errors import InputError


def read_raster(path: Path) -> Image:
    """Read a PNG or JPEG file; grey stays one channel.

    Raises:
        InputError: the file is damaged, blank, or of a refused size.
    """
    record = Record(path)
    try:
        with warnings.catch_warnings():
            # Pillow only warns about a picture of up to 179 megapixels; `refuse_shape` refuses far smaller ones.
            warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
            with PillowImage.open(path, formats=("PNG", "JPEG")) as opened:
                return _read(record, opened)
    except InputError:
        raise
    except PillowImage.DecompressionBombError:
        raise record.refuse(f"has more than {MAX_PIXELS:,} pixels, the most that are read") from None
    except Exception as error:  # decoders of damaged files raise anything: OSError, SyntaxError, struct.error, ...
        raise record.refuse(f"is damaged and cannot be decoded ({type(error).__name__})") from None


def _read(record: Record, opened: PillowImage.Image) -> Image:
    refuse_shape(record, opened.height, opened.width)
    opened.load()  # before `info` is read: a PNG may keep text chunks behind its pixels
    mark = find_mark(record.path, opened)
    if opened.format == "PNG" and getattr(opened, "n_frames", 1) > 1:
        record.warnings.append(f"animated PNG: the first of {getattr(opened, 'n_frames', 1)} frames is read")
    record.steps.append(f"decode: {opened.format}, mode {opened.mode}, {opened.width} x {opened.height}")
    if opened.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        record.steps.append("rotate: EXIF orientation applied")
    ImageOps.exif_transpose(opened, in_place=True)
    if opened.mode.startswith(("I", "F")):
        deep = np.asarray(opened)
        warn_of_mask(record, deep)
        return finish(record, stretch_percentiles(record, deep), mark)
    values = np.asarray(_eight_bit(record, opened), dtype=np.float32)
    if values.ndim == 2:
        warn_of_mask(record, values)
    values /= 255
    if opened.format == "PNG" and _png_bit_depth(record.path) == 16:
        record.warnings.append("16-bit colour or alpha is read at 8 bits per channel")
        values = stretch_percentiles(record, values)
    return finish(record, values, mark)


def _eight_bit(record: Record, picture: PillowImage.Image) -> PillowImage.Image:
    """The picture in mode L or RGB, without alpha."""
    mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    if picture.has_transparency_data:
        record.steps.append("alpha: composited on black")
        solid = PillowImage.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = PillowImage.alpha_composite(solid, picture.convert("RGBA"))
    return picture if picture.mode == mode else picture.convert(mode)


def _png_bit_depth(path: Path) -> int:
    with path.open("rb") as stream:
        return stream.read(25)[24]  # signature, length and name of IHDR, width, height, depth
