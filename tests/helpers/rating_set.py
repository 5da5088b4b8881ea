"""Small sets to rate, made of drawings: quick to write, and each image tells which it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from medsyn.rating.export import Exported, Wishes, export
from medsyn.rating.sources import Source

SCRIPT = "</script><script>window.ran=1</script><img src=x onerror=window.ran=2>"
HOSTILE = f'MRI: {SCRIPT} "quoted" & \u2028 \U0001f9e0'
SIDE = 48


def drawing(number: int, colour: bool = False) -> np.ndarray:
    """Noise and a bright square whose place depends on the number: uint8 [SIDE, SIDE] or [SIDE, SIDE, 3]."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(20, 90, (SIDE, SIDE, 3 if colour else 1), dtype=np.uint8)
    row, column = divmod(number % 36, 6)
    pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 230
    return pixels if colour else pixels[..., 0]


def write_png(path: Path, pixels: np.ndarray, **texts: str) -> Path:
    """A PNG file with text chunks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.fromarray(pixels).save(path, pnginfo=info)
    return path


def generated(folder: Path, count: int, modality: str = "MRI", prompt: str = "") -> list[Source]:
    """Images that a campaign might have made."""
    sources = []
    for number in range(count):
        name = f"{modality.lower()}-secret-{number}"
        pixels = drawing(number, colour=modality == "Fundus")
        path = write_png(folder / "made" / f"{name}.png", pixels, Synthetic="YES", Prompt="secret prompt")
        facts = {"id": name, "replicate": number, "mode": "filtered", "accepted": number % 3 > 0, "selector": 0.123456}
        text = prompt or f"{modality}: number {number // 2}"
        sources.append(Source(path, modality, text, is_generated=True, facts=facts))
    return sources


def real(folder: Path, count: int, modality: str = "MRI") -> list[Source]:
    """Images of patients, larger and of another shape."""
    sources = []
    for number in range(count):
        pixels = np.kron(drawing(100 + number), np.ones((3, 2), dtype=np.uint8))
        path = write_png(folder / "real" / f"{modality.lower()}-patient-{number}.png", pixels)
        sources.append(Source(path, modality, f"{modality}: real {number}", is_generated=False))
    return sources


def ramp(folder: Path) -> Source:
    """A picture of 16 bits: every column brighter than the one before."""
    levels = np.broadcast_to(np.linspace(0, 65535, 256).astype(np.uint16), (64, 256))
    return Source(write_png(folder / "deep" / "ramp.png", np.ascontiguousarray(levels)), "CT", "CT: ramp")


def small_set(folder: Path, images: int = 12, **wishes: object) -> Exported:
    """A page of MRI and fundus images with decoys, repeats, pairs and examples; one caption tries to run a script."""
    hostile = generated(folder / "hostile", 1, prompt=HOSTILE)
    sources = [*hostile, *generated(folder, images - 3), *generated(folder, 2, "Fundus")]
    examples = list(zip((1, 2, 3), real(folder / "examples", 3), strict=True))
    asked = Wishes(**{"images": images, "seed": 3, "pairs": 3, **wishes})  # type: ignore[arg-type]
    return export(sources, real(folder, 8), examples, folder / "set.html", asked)
