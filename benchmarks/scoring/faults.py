"""The row `faults`: a generator's own bad samples, made in ways that the Selector never saw.

A generator is fine-tuned for every modality, by the stage. It samples prompts well and badly, from noise that no stage
draws; the Selectors of stage 1, and of stage 2 where that learns from samples, say which is which. Of stage 2 whole
families of ways are left out in turn, and asked about.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache
from medsyn.models.scorers import load_selector
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.models.weights import model_fingerprint, unet_sha256
from medsyn.stage import CampaignDirectory, Control, Task, slug
from medsyn.training.finetune import stage as finetuning
from medsyn.training.scorers import stages
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.sampled import sampled_comparisons
from medsyn.training.scorers.ways import WAYS
from scoring.figures import Figure, worst
from scoring.images import RatedImages, Rating
from scoring.selector import Answers
from scoring.selectors import CPU, scores, settings

FAMILIES: tuple[tuple[str, ...], ...] = (
    ("two steps", "few steps, no guidance", "no guidance"),
    ("too much guidance", "away from the prompt"),
    ("too much noise", "noisy latents", "stopped early"),
    ("noisy weights", "wrong timesteps"),
    ("wrong scale", "wrong mean", "channel flipped"),
    ("blurred latents", "coarse latents"),
    ("stitched", "two in one"),
    ("shuffled", "wrapped around"),
)
PROMPTS = 16  # of each modality
OTHER_SEED = 1_000_003  # added to the campaign's: other noise than any stage draws


def figures(images: RatedImages, seeds: int, changes: Sequence[str], ways: Collection[str]) -> list[Figure]:
    """All figures of the row; only families with one of the `ways` are left out."""
    families = [family for family in FAMILIES if set(family) & set(ways)]
    first, second = Answers(), Answers()
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            images.write(Path(folder), images.ratings, [])
            config = settings(images, Path(folder), seed, changes)
            _ask(images, config, CampaignDirectory(Path(folder) / "campaign"), seed, families, first, second)
    found = _described("stage 1's Selector, that saw no sample", first)
    return found + (_described("stage 2's, ways left out in turn", second) if second.score else [])


def _described(name: str, answers: Answers) -> list[Figure]:
    whole = np.ones(len(answers.score), dtype=bool)
    bad = answers.of("value") == 0
    by_way = []
    for way in np.unique(answers.of("kind")[bad]):
        of_way = np.isin(answers.of("kind"), ["", way])
        by_way.append(answers.figure(f"{name}: {way}", ".95", of_way, answers.auroc))
    by_modality = answers.by("modality", ".90", whole, answers.auroc)
    all_of_them = answers.figure(f"{name}: AUROC of good against bad samples", "-", whole, answers.auroc)
    return [
        all_of_them,
        worst("worst way", ".95", by_way),
        worst(f"{name}, worst kind of image", ".90", by_modality),
        *by_way,
    ]


def _ask(
    images: RatedImages,
    config: Config,
    directory: CampaignDirectory,
    seed: int,
    families: Sequence[Collection[str]],
    first: Answers,
    second: Answers,
) -> None:
    """Fine-tune, train and ask, in one campaign."""
    modalities = config.data.modalities
    for number, modality in enumerate(modalities):
        finetuning.run(config, Task("finetune", number, slug(modality), modality), directory, Control())
    stages.run_stage1(config, Task("rlhf-stage1", 0, "all"), directory, Control())
    samples = {name: sampled(config, directory, name, texts_of(images, name)) for name in modalities}
    selector = load_selector(directory.selector(), CPU)
    for modality, its in samples.items():
        _answer(selector, its, modality, seed, tuple(WAYS), first)
    if not hasattr(stages, "sampled_comparisons"):
        return
    for family in families:
        with never_sampled(family):
            for number, modality in enumerate(modalities):
                task = Task("rlhf-stage2", number, slug(modality), modality)
                stages.run_stage2(config, task, directory, Control())
                selector = load_selector(directory.selector(modality), CPU)
                _answer(selector, samples[modality], modality, seed, tuple(family), second)
        shutil.rmtree(directory.root / "work" / "rlhf-stage2")


def texts_of(images: RatedImages, modality: str) -> list[str]:
    """The captions of the data set."""
    with (images.root / "metadata.csv").open(newline="") as lines:
        return [row["Text"] for row in csv.DictReader(lines) if row["modality"] == modality]


def sampled(config: Config, directory: CampaignDirectory, modality: str, texts: Sequence[str]) -> Comparisons:
    """Some of the texts, sampled well and badly by the modality's generator."""
    source, folder = config.model_paths.stable_diffusion, directory.finetuned_unet(modality)
    campaign = config.campaign.model_copy(update={"seed": config.campaign.seed + OTHER_SEED})
    return sampled_comparisons(
        config.model_copy(update={"campaign": campaign}),
        modality,
        texts,
        PROMPTS,
        model_fingerprint(source, unet_sha256(folder), folder),
        lambda: load_synthetic(source, CPU, unet_from=folder),
        TensorCache(directory.root / "cache" / "asked"),
        Control(),
    )


@contextmanager
def never_sampled(family: Collection[str]) -> Iterator[None]:
    """Stages whose generators sample in all ways but those of a family."""
    room: Any = stages
    whole = room.sampled_comparisons
    room.sampled_comparisons = partial(whole, ways=tuple(name for name in WAYS if name not in family))
    try:
        yield
    finally:
        room.sampled_comparisons = whole


def _answer(
    selector: Selector, its: Comparisons, modality: str, seed: int, ways: Sequence[str], answers: Answers
) -> None:
    """Scores of the good images, and of the bad ones of some ways."""
    chosen = np.isin(its.kind, ways)
    asked = dict.fromkeys(its.better.tolist(), "")
    asked |= dict(zip(its.worse[chosen].tolist(), its.kind[chosen].tolist(), strict=True))
    given = scores(selector, its.pixels[list(asked)], [modality] * len(asked))
    for (place, kind), score in zip(asked.items(), given, strict=True):
        image = Rating("", 3, modality, 3, "", str(its.group[place]))
        answers.add(seed, image, kind, score, not kind)
