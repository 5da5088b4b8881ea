"""What an alignment leaves: the model as a pipeline folder, each round's candidates and verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage
from PIL import PngImagePlugin

from medsyn import disk, time_use
from medsyn.data.images.read import SYNTHETIC_KEY
from medsyn.models.pipeline_folder import add_parts, link_or_copy
from medsyn.models.scorers import PROVENANCE
from medsyn.training.alignment.advantage import Rewards
from medsyn.training.alignment.candidates import Sampler, Scored
from medsyn.training.checkpoint import discard
from medsyn.training.finetune.lora import ADAPTER_WEIGHTS
from medsyn.training.run import CONDITIONS, TrainingRun

ROUND = "round.json"  # of a round's folder: what came of it
_CANDIDATES, _TABLE = "candidates", "candidates.csv"
_NOTICE = "Generated image, to train a generator with. It shows no patient. Not for diagnosis."
_COLUMNS = (
    *("file", "prompt", "seed", "round", "selector", "selector_spread", "policy", "policy_spread"),
    *("reward", "error", "advantage", "part"),
)


def round_folder(work: Path, number: int) -> Path:
    """Where what came of a round is: its UNet, until the model is published, and its verdict."""
    return work / f"round-{number}"


@time_use.of(time_use.WRITING)
def keep_candidates(
    work: Path, number: int, sampler: Sampler, scored: Scored, found: Rewards, parts: Sequence[str]
) -> None:
    """Write a round's candidates as marked PNG files and a table of their scores; what is there stays."""
    path = work / _CANDIDATES / f"round-{number}"
    disk.sweep_temporaries(path.parent)
    if path.exists():
        return
    rows: list[dict[str, Any]] = []
    with disk.atomic_directory(path) as temporary:
        for place, one in enumerate(scored.wanted):
            row: dict[str, Any] = {"file": f"{one.group:04d}-{one.number:02d}.png", "prompt": one.prompt}
            row |= {"seed": one.seed, "round": number}
            row |= {name: round(float(values[place]), 6) for name, values in scored.scores.items()}
            row |= {"reward": found.reward[place], "error": found.error[place], "advantage": found.advantage[place]}
            row |= {name: round(float(row[name]), 6) for name in ("reward", "error", "advantage")}
            rows.append(row | {"part": parts[place]})
            (temporary / row["file"]).write_bytes(_png(sampler, scored.keys[place], rows[-1]))
        (temporary / _TABLE).write_text(_csv(rows), encoding="utf-8")


def _png(sampler: Sampler, key: str, about: Mapping[str, Any]) -> bytes:
    picture, texts, stream = sampler.picture(key), PngImagePlugin.PngInfo(), io.BytesIO()
    modality = {"Modality": sampler.modality, "Prompt": about["prompt"]}
    for name, value in {SYNTHETIC_KEY: "YES", "Notice": _NOTICE, **modality, **about}.items():
        if name not in ("file", "prompt"):
            texts.add_text(name, str(value))
    image = PillowImage.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image.save(stream, format="PNG", pnginfo=texts)
    return stream.getvalue()


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


@time_use.of(time_use.WRITING)
def end_round(work: Path, number: int, verdict: Mapping[str, Any], best: Path | None) -> None:
    """Write a round's verdict, and the UNet of `best` where it goes on with that: the round is over."""
    path = round_folder(work, number)
    with disk.atomic_directory(path) as temporary:
        if best is not None:
            _link(best, temporary)
        disk.write_json(temporary / ROUND, verdict)


@time_use.of(time_use.WRITING)
def publish(model: Path, finetuned: Path, aligned: Path | None, training: TrainingRun) -> None:
    """Write `model` as an ordinary diffusers pipeline: the UNet of the last round that was kept, else the fine-tune's.

    All other parts are the fine-tune's.
    """
    with disk.atomic_directory(model) as temporary:
        _link((aligned or finetuned) / "unet", temporary / "unet")
        if aligned is not None and (aligned / ADAPTER_WEIGHTS).is_file():
            _link(aligned / ADAPTER_WEIGHTS, temporary / ADAPTER_WEIGHTS)
        add_parts(finetuned, temporary)
        disk.write_json(temporary / PROVENANCE, training.provenance | {CONDITIONS: training.conditions})


def discard_rounds(work: Path) -> None:
    """Remove the rounds' UNets, once the model is published; the verdicts stay."""
    for path in work.glob("round-*/unet"):
        discard(path)


def _link(source: Path, to: Path) -> None:
    """A file, or a folder and all that is in it."""
    if not source.is_dir():
        return link_or_copy(source, to)
    to.mkdir(exist_ok=True)
    for child in sorted(source.iterdir()):
        _link(child, to / child.name)
