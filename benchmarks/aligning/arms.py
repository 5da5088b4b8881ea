"""The arms: ways to come from one wrong generator to images, each by the project's own stages."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aligning.aims import BEFORE, BEST_OF
from aligning.campaign import CPU, MODALITY, Candidates, World, task
from aligning.world import label_of, write_table
from medsyn import disk
from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import read_image
from medsyn.models.cards import threshold_of
from medsyn.models.score_images import policy_scores, selector_scores
from medsyn.models.scorers import load_policy, load_selector
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.stage import Control
from medsyn.training.alignment import stage as alignment
from medsyn.training.finetune import stage as finetuning
from medsyn.training.finetune.dataset import training_rows

JUDGED = "judged"  # names the set of prompts and noise that every arm has
ATTEMPTS = 4  # of best of 4


@dataclass(frozen=True)
class Made:
    """What an arm came to."""

    candidates: Candidates
    note: str = ""


Arm = Callable[[World], Made]


def before(of: World) -> Made:
    """The generator as it was fine-tuned."""
    return Made(_judged(of, BEFORE, of.directory().finetuned_unet(MODALITY)))


def best_of_four(of: World) -> Made:
    """The same generator, and the scorers choose."""
    more = _judged(of, BEST_OF, of.directory().finetuned_unet(MODALITY), range(1, ATTEMPTS))
    return Made(before(of).candidates.with_more(more))


def plain(of: World) -> Made:
    """Fine-tuned once more, on the well-rated real images alone: the hard baseline, as many steps as alignment."""
    folder = of.folder / PLAIN
    section = of.config().align
    table = folder / "metadata.csv"
    if not table.exists():
        _write_well_rated(of, table)
    config = of.config(
        f"data.table={table}",
        f"data.root={of.folder}",
        "data.held_out_fraction=0.01",  # what alignment holds out is not in the table
        f"model_paths.stable_diffusion={of.directory().finetuned_unet(MODALITY)}",
        f"finetune.max_train_steps={section.max_train_steps * section.rounds}",
        f"finetune.train_batch_size={section.global_batch}",
        f"finetune.learning_rate={section.learning_rate}",
        at=PLAIN,
    )
    finetuning.run(config, task("finetune"), of.directory(PLAIN), Control())
    made = _judged(of, PLAIN, of.directory(PLAIN).finetuned_unet(MODALITY))
    return Made(made, note=f"{_lines(table)} real images,")


def aligned(of: World, at: str = "aligned", changes: tuple[str, ...] = (), base: str = "campaign") -> Made:
    """The stage `align`, with changes to its configuration, from the generator of the campaign `base`."""
    _link(of, at, base)
    alignment.run(of.config("align.enabled=true", *changes, at=at), task("align"), of.directory(at), Control())
    summary = disk.read_json(of.directory(at).work("align", task("align").name) / "summary.json")
    made = _judged(of, at, of.directory(at).aligned_unet(MODALITY))
    return Made(made, note=f"kept {summary['kept']} {summary.get('reason', '')},")


def after_plain(of: World) -> Made:
    """Aligned from the plain fine-tune."""
    plain(of)
    return aligned(of, "aligned-after-plain", base=PLAIN)


PLAIN = "plain"
ARMS: dict[str, Arm] = {
    "before": before,
    "best of 4": best_of_four,
    "plain fine-tune": plain,
    "aligned": aligned,
    "aligned twice": functools.partial(aligned, at="aligned-twice", changes=("align.rounds=2",)),
    "aligned, plain first": after_plain,
    **{
        method: functools.partial(aligned, at=f"aligned-{method}", changes=(f"align.method={method}",))
        for method in ("rejection", "nft", "awm")
    },
    "dpo, no real images": functools.partial(aligned, at="aligned-no-real", changes=("align.real_share=0",)),
}


def _judged(of: World, at: str, unet: Path, attempts: Sequence[int] = (0,)) -> Candidates:
    """The judged images of a generator, from the file that an earlier run left, if it did."""
    kept, count = of.folder / at / "judged.npz", of.sizes.judged
    if not kept.exists():
        made = of.sample(unet, count, JUDGED, attempts)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name("partial.npz")
        np.savez(partial, pixels=made.pixels, selector=made.selector, reward=made.reward)
        partial.replace(kept)
    with np.load(kept) as found:
        asked = [label_of(text) for text in of.asked(count)]
        return Candidates(found["pixels"], found["selector"], found["reward"], asked)


def _link(of: World, at: str, base: str) -> None:
    """A campaign with the results of what comes before alignment: `base`'s fine-tuning, the world's scorers."""
    for stage, source in {"finetune": base, "rlhf-stage1": "campaign", "rlhf-stage2": "campaign"}.items():
        link = of.directory(at).root / "work" / stage
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(of.directory(source).root / "work" / stage)


def _write_well_rated(of: World, table: Path) -> None:
    """The training images that alignment has in its batches: accepted, and of the better half by both scorers."""
    directory = of.directory()
    selector = load_selector(directory.selector(MODALITY), CPU)
    policy = load_policy(directory.policy(MODALITY), CPU)
    system = load_synthetic(of.config().model_paths.stable_diffusion, CPU, with_unet=False)
    edge = threshold_of(selector.card, MODALITY)
    kept_out = {row.file for row in training_rows(of.config(), MODALITY)[1]}
    with (of.folder / "metadata.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["path"] not in kept_out]
    pixels = torch.cat([_pixels(of.folder / row["path"]) for row in rows])
    pooled = system.pool_all([row["Text"] for row in rows])
    quality = selector_scores(selector, pixels, MODALITY).score.numpy()
    fit = policy_scores(policy, pixels, pooled, MODALITY).score.numpy()
    both = quality * fit
    passes = (quality >= (edge.threshold if edge else 0.5)) & (both >= np.median(both))
    kept: list[dict[str, object]] = [dict(row) for row, one in zip(rows, passes, strict=True) if one]
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, kept)


def _pixels(file: Path) -> Tensor:
    """Float [1, 3, R, R] in 0..1, as a campaign reads it."""
    square = fit_square(read_image(file, MODALITY).pixels, 64)
    return torch.from_numpy(np.round(square.transpose(2, 0, 1) * 255)).float()[None].expand(-1, 3, -1, -1) / 255


def _lines(table: Path) -> int:
    return len(table.read_text().splitlines()) - 1
