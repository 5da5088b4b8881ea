"""The row `filtering`: what choosing by the scorers gains where the generator is poor, at equal kept images.

Phantoms only, because their truth is known: the judge says whether the finding is the one that was asked for, a
regression how good the image is (1 to 3; it knows the Selector's quality metrics, the judge does not), and a kernel
distance how far the kept images are from phantoms of excellent quality. A generator that was fine-tuned for a few steps
samples `CANDIDATES` images of each prompt; one is kept: the first, or the best by the Selector, by the Policy, or by
the Policy among those that pass the Selector.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fast_modes import QualityJudge, through_autoencoder

from medsyn import config as configuration
from medsyn.config import Config
from medsyn.data.phantoms.phantom import CAMPAIGNS, parse_caption
from medsyn.evaluation import judge
from medsyn.evaluation.metrics import kid, load_kernel_distance
from medsyn.generation.block_store import Item
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.models.image_features import describe
from medsyn.models.scorers import load_policy, load_selector
from medsyn.models.scores import Interval
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.stage import CampaignDirectory, Control, Task, slug
from medsyn.training.finetune import stage as finetuning
from medsyn.training.scorers import stages
from medsyn.training.scorers.evidence import weighted_mean
from scoring.figures import Figure, figure
from scoring.images import RatedImages
from scoring.selectors import CPU, settings, threshold

CANDIDATES, PROMPTS = 4, 24  # prompts of each modality
POOR = ("finetune.max_train_steps=10", "finetune.lr_warmup_steps=2")
REAL_SEED, REAL = 1_000_033, 60  # of the phantoms that the regression and the distance know, of each kind
CHOICES = ("first", "Selector", "Policy", "Policy of what passes")


@dataclass
class Kept:
    """Images that were kept by one choice: their prompts and what the judges see."""

    seed: list[int]
    prompt: list[str]
    finding: list[float]
    quality: list[float]
    pictures: list[np.ndarray]


def figures(images: RatedImages, seeds: int, changes: Sequence[str]) -> list[Figure]:
    """Differences to keeping the first candidate, prompt by prompt, and the distance of each choice."""
    kept = {choice: Kept([], [], [], [], []) for choice in CHOICES}
    seconds = {"sampling": 0.0, "Selector": 0.0, "Policy": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        expert = judge.load_or_train(Path(folder))
    real, facts = judge.draw(REAL, REAL_SEED, CAMPAIGNS)
    plain = load_synthetic(configuration.EMBEDDED, CPU, with_unet=False)
    quality = QualityJudge(through_autoencoder(plain, real), facts)
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            images.write(Path(folder), images.ratings, [])
            config = settings(images, Path(folder), seed, [*changes, *POOR])
            _keep(images, config, CampaignDirectory(Path(folder) / "campaign"), seed, expert, quality, kept, seconds)
    first, found = kept[CHOICES[0]], []
    for choice in CHOICES[1:]:
        its = kept[choice]
        for name in ("finding", "quality"):
            gained = np.array(getattr(its, name)) - np.array(getattr(first, name))
            groups = np.array(its.prompt)
            label = f"{name}, kept by {choice}: gain over the first"
            found.append(
                figure(
                    label, "-", np.array(its.seed), groups, lambda chosen, gained=gained: weighted_mean(gained[chosen])
                )
            )
    best = np.stack([describe(one) for one, its in zip(real, facts, strict=True) if its.quality == 3])
    distance = load_kernel_distance()
    for choice, its in kept.items():
        far = kid(distance, np.stack([describe(one) for one in its.pictures]), best, 20, 50, 0)
        if far is not None:
            spread = far.error or 0.0
            bounds = {"value": far.value, "low": far.value - 1.96 * spread, "high": far.value + 1.96 * spread}
            found.append(Figure(f"kernel distance, kept by {choice}", Interval(**bounds, n=len(its.prompt)), [], "-"))
    for name, spent in seconds.items():
        value = spent / max(1, len(first.prompt))
        found.append(Figure(f"seconds per kept image: {name}", Interval(value=value, n=len(first.prompt)), [], "-"))
    return found


def _keep(
    images: RatedImages,
    config: Config,
    directory: CampaignDirectory,
    seed: int,
    expert: judge.Judge,
    quality: QualityJudge,
    kept: dict[str, Kept],
    seconds: dict[str, float],
) -> None:
    """Train, sample, score and choose, in one campaign."""
    stages.run_stage1(config, Task("rlhf-stage1", 0, "all"), directory, Control())
    selector, policy = load_selector(directory.selector(), CPU), load_policy(directory.policy(), CPU)
    for number, modality in enumerate(config.data.modalities):
        finetuning.run(config, Task("finetune", number, slug(modality), modality), directory, Control())
        system = load_synthetic(config.model_paths.stable_diffusion, CPU, unet_from=directory.finetuned_unet(modality))
        edge, recipe = threshold(selector, config, modality), Recipe.of(config, modality)
        prompts = _prompts(images, modality)
        wanted = [
            (Item(f"{modality}-{place}", text, 0), go) for place, text in enumerate(prompts) for go in range(CANDIDATES)
        ]
        started = time.perf_counter()
        pictures: list[np.ndarray] = []
        for start in range(0, len(wanted), recipe.batch_size):
            pictures += ImageSampler(recipe, system).sample(wanted[start : start + recipe.batch_size]).pictures
        seconds["sampling"] += time.perf_counter() - started
        colour = [np.broadcast_to(one, (*one.shape[:2], 3)) for one in pictures]
        pixels = torch.from_numpy(np.stack(colour).transpose(0, 3, 1, 2)).float() / 255
        started = time.perf_counter()
        good = np.array([float(selector.score(one[None], modality).score[0]) for one in pixels])
        seconds["Selector"] += time.perf_counter() - started
        started = time.perf_counter()
        pooled = [system.embed(item.prompt)[1][None] for item, _ in wanted]
        fits = [
            float(policy.score(one[None], text, modality).score[0]) for one, text in zip(pixels, pooled, strict=True)
        ]
        seconds["Policy"] += time.perf_counter() - started
        aligned = np.array(fits)
        for place, text in enumerate(prompts):
            its = slice(place * CANDIDATES, (place + 1) * CANDIDATES)
            passing = np.where(good[its] >= edge, aligned[its], aligned[its] - 2)
            best = (0, int(good[its].argmax()), int(aligned[its].argmax()), int(passing.argmax()))
            fact = parse_caption(text)
            assert fact is not None, text
            for choice, which in zip(CHOICES, best, strict=True):
                picture = colour[its.start + which]
                seen = judge.look(expert, [picture])[0]
                one = kept[choice]
                one.seed.append(seed)
                one.prompt.append(f"{modality}-{place}")
                one.finding.append(float((seen.kind, seen.finding) == (fact.kind, fact.finding)))
                one.quality.append(float(quality([picture], [fact])[0]))
                one.pictures.append(picture)


def _prompts(images: RatedImages, modality: str) -> list[str]:
    """Texts that ask for excellent images, as the campaign's own prompts do."""
    with (images.root / "ratings.csv").open(newline="") as lines:
        texts = [row["prompt"] for row in csv.DictReader(lines) if row["modality"] == modality]
    return [texts[place % len(texts)] for place in range(PROMPTS)]
