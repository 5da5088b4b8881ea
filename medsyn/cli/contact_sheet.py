"""A contact sheet: pictures of a directory in a grid with gaps, each over its name and its scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsyn.generation.write.png import encode_png

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

SIDE = 160  # pixels of a picture's place, which it fills in its own proportions
GAP = 8
LINE = 14  # height of a line of text
_FONT_SIZE = 11

Picture = tuple[np.ndarray, Sequence[str]]  # uint8 [H, W, 1 or 3], and the lines below it


def contact_sheet(pictures: Sequence[Picture]) -> bytes:
    """A PNG of all pictures, in a roughly square grid; it is marked as synthetic, too."""
    columns = math.ceil(math.sqrt(len(pictures)))
    lines = max(len(text) for _, text in pictures)
    width, height = SIDE + GAP, SIDE + GAP + lines * LINE
    rows = math.ceil(len(pictures) / columns)
    is_grey = all(pixels.shape[-1] == 1 for pixels, _ in pictures)
    sheet = Image.new("L" if is_grey else "RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for number, (pixels, text) in enumerate(pictures):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        picture = _fitted(pixels)
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        for position, line in enumerate(text):
            draw.text((left, top + SIDE + position * LINE), _cut(line, font), fill="black", font=font)
    pixels = np.asarray(sheet)
    return encode_png(pixels.reshape(*pixels.shape[:2], -1), {"Contact sheet": f"{len(pictures)} images"})


def _fitted(pixels: np.ndarray) -> Image.Image:
    """The picture in the size of its place: a small one is enlarged in whole pixels, so that it shows what it is."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    most = max(picture.size)
    if most <= SIDE:
        factor = SIDE // most
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, round(side * SIDE / most)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _cut(text: str, font: FreeTypeFont | BitmapFont) -> str:
    """The text, without its end if there is no room for it."""
    while text and font.getlength(text) > SIDE:
        text = text[:-2] + "…"
    return text
