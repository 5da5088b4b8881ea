"""What programs that generate images write into PNG and JPEG files, by which an image is known as generated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags
from PIL import Image as PillowImage

SYNTHETIC_KEY = "Synthetic"  # PNG text chunk; its value "YES" marks a generated image
_C2PA = b"rainedAlgorithmicMedia"  # of C2PA and IPTC: trained..., compositeWithTrained...
_PNG_TEXTS = {  # key: what its value contains
    SYNTHETIC_KEY: r"\AYES\Z",
    "parameters": r"\bSteps: \d",  # AUTOMATIC1111, Forge, SD.Next, Fooocus
    "prompt": r'"class_type"',  # ComfyUI
    "workflow": r'"nodes"',  # ComfyUI
    "Dream": r"",  # InvokeAI, by its versions
    "sd-metadata": r"",
    "invokeai_metadata": r"",
    "invokeai_graph": r"",
    "fooocus_scheme": r"",
}
_GENERATORS = re.compile(
    r"stable.?diffusion|comfyui|invokeai|novelai|midjourney|dall.?e\b|firefly|fooocus|automatic1111|diffusers",
    re.IGNORECASE,
)


def find_mark(path: Path, opened: PillowImage.Image) -> str:
    """What marks a picture as generated, such as "PNG text 'parameters'"; empty if nothing does.

    Args:
        path: the file.
        opened: its picture, decoded: a PNG may keep texts behind its pixels.
    """
    texts: Mapping[Any, Any] = opened.info
    for key, pattern in _PNG_TEXTS.items():
        if isinstance(text := texts.get(key), str) and re.search(pattern, text):
            return f"PNG text {key!r}"
    if isinstance(text := texts.get("Software"), str) and _GENERATORS.search(text):
        return "PNG text 'Software'"
    return _exif_mark(opened) or _source_type(path)


def _exif_mark(opened: PillowImage.Image) -> str:
    try:
        exif = opened.getexif()
        software = str(exif.get(ExifTags.Base.Software, ""))
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except Exception:  # a broken block does not cost the picture
        return ""
    if _GENERATORS.search(software):
        return "EXIF Software"
    plain = comment.replace(b"\0", b"") if isinstance(comment, bytes) else str(comment).encode()  # UTF-16, mostly
    return "EXIF UserComment" if re.search(rb"\bSteps: \d", plain) else ""


def _source_type(path: Path) -> str:
    """C2PA and XMP name it in plain text, wherever in the file they are."""
    end = b""
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            if _C2PA in end + piece:
                return "the source type trainedAlgorithmicMedia"
            end = piece[-len(_C2PA) :]
    return ""
