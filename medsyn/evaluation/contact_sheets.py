"""Contact sheets: real images and those of each arm under the prompts that asked for them."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medsyn.arms import title
from medsyn.evaluation.generated import PICTURE_SIDE, GeneratedImages, Picture
from medsyn.evaluation.read_campaign import Gathered
from medsyn.generation.filter import ACCEPTED, FAILED, KEPT_BEST, SKIPPED, UNFILTERED
from medsyn.models.image_features import shrink
from medsyn.stage import CampaignDirectory, slug

_PARTS = {"best": ("Best", "learned towards"), "worst": ("Worst", "learned away from")}
_FATES = {
    FAILED: "none of {} candidates passed",
    SKIPPED: "none of {} candidates passed",
    KEPT_BEST: "not accepted: best of {} candidates",
}


@dataclass(frozen=True)
class Frame:
    """One cell of a contact sheet: a picture (or none) and the lines below it."""

    image: str | None  # data URI
    alternative: str
    lines: Sequence[str] = ()
    accepted: bool = True


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: one column per prompt, rows of frames by name."""

    modality: str
    prompts: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Frame]]]  # (name, what it is, frames)


def data_uri(pixels: np.ndarray) -> str:
    """A PNG of uint8 [S, S, 3] as a data URI, with one channel if all three are equal."""
    is_grey = bool((pixels == pixels[..., :1]).all())
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if is_grey else pixels).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _words(text: str) -> set[str]:
    return set(text.casefold().replace(",", " ").replace(":", " ").split())


def closest_captions(prompts: Sequence[str], pictures: Sequence[Picture]) -> list[Picture | None]:
    """For each prompt the picture whose caption shares most words with it; among equals the one shown least so far."""
    captions = [_words(picture.text) for picture in pictures]
    shown = [0] * len(pictures)
    chosen: list[Picture | None] = []
    for wanted in map(_words, prompts):
        overlaps = [(len(wanted & words) / len(wanted | words), -shown[k]) for k, words in enumerate(captions)]
        best = max(range(len(pictures)), key=overlaps.__getitem__, default=None)
        chosen.append(None if best is None else pictures[best])
        if best is not None:
            shown[best] += 1
    return chosen


def _real_frame(picture: Picture | None, prompt: str) -> Frame:
    if picture is None:
        return Frame(None, "no real image")
    return Frame(
        data_uri(picture.pixels), f"real image: {picture.text}", [] if picture.text == prompt else [picture.text]
    )


def _generated_frame(images: GeneratedImages, prompt_id: str, mode: str) -> Frame:
    """The prompt's image, or what became of it."""
    if prompt_id not in images.shown:
        return Frame(None, "not generated", ["not generated"], accepted=False)
    line, picture = images.shown[prompt_id]
    notes = [f"{score} {line[score]:.2f}" for score in ("selector", "policy") if line[score] is not None]
    if line["reason"] not in (ACCEPTED, UNFILTERED):
        notes.append(_FATES.get(line["reason"], str(line["reason"])).format(line["attempts"]))
    elif line["reason"] == ACCEPTED:
        notes.append(f"accepted, {line['attempt'] + 1} of {line['attempts']}")
    image = None if picture is None else data_uri(picture.pixels)
    return Frame(image, f"synthetic image, {mode}: {line['prompt']}", notes, accepted=bool(line["accepted"]))


def candidate_sheet(directory: CampaignDirectory, modality: str, most: int) -> Sheet | None:
    """The best and the worst candidate of prompts that alignment learned from, in its last round; None without any."""
    folders = sorted((directory.work("align", slug(modality)) / "candidates").glob("round-*"))
    if not folders or not (folders[-1] / "candidates.csv").is_file():
        return None
    with (folders[-1] / "candidates.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    by_part = {part: {row["file"].split("-")[0]: row for row in rows if row["part"] == part} for part in _PARTS}
    groups = sorted(set(by_part["best"]) & set(by_part["worst"]))
    groups = [groups[k * len(groups) // min(most, len(groups))] for k in range(min(most, len(groups)))]
    if not groups:
        return None
    shown = [
        (name, what, [_candidate_frame(folders[-1], by_part[part][group]) for group in groups])
        for part, (name, what) in _PARTS.items()
    ]
    return Sheet(modality, [by_part["best"][group]["prompt"] for group in groups], shown)


def _candidate_frame(folder: Path, row: Mapping[str, str]) -> Frame:
    notes = [f"{name} {float(row[name]):.2f}" for name in ("reward", "selector", "policy")]
    path = folder / row["file"]
    if not path.is_file():
        return Frame(None, "no picture", notes)
    with Image.open(path) as image:
        pixels = shrink(np.asarray(image.convert("RGB")), min(PICTURE_SIDE, image.height))
    return Frame(data_uri(pixels), f"synthetic image, candidate: {row['prompt']}", notes)


def contact_sheet(gathered: Gathered, modality: str, most: int) -> Sheet:
    """The contact sheet of a modality: prompts spread evenly over its list, and the closest real images."""
    chosen = gathered.chosen.get(modality, [])
    held_out = [picture for picture in gathered.real.held_out if picture.modality == modality]
    training = [picture for picture in gathered.real.training if picture.modality == modality]
    real, origin = (held_out, "held out") if held_out else (training, "trained on")
    if not chosen:
        shown = real[:most]
        frames = [Frame(data_uri(picture.pixels), f"real image: {picture.text}") for picture in shown]
        return Sheet(modality, [picture.text for picture in shown], [("Real", origin, frames)])
    texts = [row.prompt for row in chosen]
    pairs = zip(closest_captions(texts, real), texts, strict=True)
    rows = [("Real", f"{origin}, closest caption", [_real_frame(picture, text) for picture, text in pairs])]
    for mode, images in gathered.made.get(modality, {}).items():
        rows.append((title(mode), "synthetic", [_generated_frame(images, row.prompt_id, mode) for row in chosen]))
    return Sheet(modality, texts, rows)
