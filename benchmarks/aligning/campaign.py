"""The campaigns of one world: the project's own stages, one after the other, on tables that are wrong on purpose.

Every result stays in the world's folder, and what is there is not made again: a benchmark that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aligning import world
from aligning.observer import Observer
from medsyn import config as configuration
from medsyn import disk
from medsyn.config import Config
from medsyn.data.phantoms.phantom import Label
from medsyn.generation.block_store import Item
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.generation.write.png import encode_png
from medsyn.models.scorers import load_policy, load_selector
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.stage import CampaignDirectory, Control, Task, slug
from medsyn.training.finetune import stage as finetuning
from medsyn.training.scorers import stages

TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"
CPU = torch.device("cpu")
KINDS, MODALITY = ("Chest X-ray",), "X-Ray"
# of the generator that is wrong: long enough to draw well what its captions say
WRONG = ("finetune.max_train_steps=240", "data.held_out_fraction=0.1")
TWICE_RATED = 40  # images that all raters have seen; each of the others was seen by one
ATTEMPTS = 4  # of best-of-4


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is."""

    images_per_kind: int = 600
    ratings: int = 500
    judged: int = 320


@dataclass(frozen=True)
class Pictures:
    """N images of one arm, and what was asked for."""

    pixels: Tensor  # uint8 [N, 3, R, R]
    asked: list[Label]
    reward: np.ndarray | None = None  # [N], by the scorers, where they were asked


@dataclass(frozen=True)
class World:
    """One campaign seed: its tables, its ratings and its trained models."""

    folder: Path
    number: int  # the campaign's seed
    sizes: Sizes
    changes: Sequence[str] = ()  # key=value on top of configs/tiny.yaml

    def config(self, *changes: str, at: str = "campaign") -> Config:
        """The configuration of a campaign of this world; `at` names its directory."""
        own = [
            f"data.table={self.folder / 'metadata.csv'}",
            f"data.ratings_file={self.folder / 'ratings.csv'}",
            f"data.modalities=[{MODALITY}]",
            f"campaign.seed={self.number}",
            f"campaign.dir={self.folder / at}",
        ]
        return configuration.load(TINY, [*own, *WRONG, *self.changes, *changes], {})

    def directory(self, at: str = "campaign") -> CampaignDirectory:
        """Where a campaign is."""
        return CampaignDirectory(self.folder / at)

    @cached_property
    def training_images(self) -> list[world.Shown]:
        """What it is fine-tuned on."""
        return world.training_images(KINDS, self.sizes.images_per_kind, self.number)

    def prepare(self, eye: Observer) -> None:
        """Fine-tune on the wrong images, have samples rated by raters with this eye, and train the scorers."""
        if not (self.folder / "metadata.csv").exists():
            world.write_training_images(self.training_images, self.folder)
        finetuning.run(self.config(), task("finetune"), self.directory(), Control())
        if not (self.folder / "ratings.csv").exists():
            self._have_rated(eye)
        stages.run_stage1(self.config(), Task("rlhf-stage1", 0, "all"), self.directory(), Control())
        stages.run_stage2(self.config(), task("rlhf-stage2"), self.directory(), Control())

    def _have_rated(self, eye: Observer) -> None:
        """Write `ratings.csv`: three raters see the first images, one of them each of the others."""
        count = self.sizes.ratings - (world.RATERS - 1) * TWICE_RATED
        texts, drawn = self.asked(count), self.sample(self.directory().finetuned_unet(MODALITY), count, "rated")
        seen = eye.look(drawn.pixels, drawn.asked)
        right, quality = seen.is_right, seen.quality.argmax(axis=1)
        votes = [world.rate(right, quality, rater, self.number) for rater in range(world.RATERS)]
        (self.folder / "rated").mkdir(exist_ok=True)
        rows: list[dict[str, object]] = []
        for number, text in enumerate(texts):
            file = f"rated/{number:04d}.png"
            picture = drawn.pixels[number, :1].permute(1, 2, 0).numpy()
            disk.write_atomic(self.folder / file, encode_png(picture, {}))
            raters = range(world.RATERS) if number < TWICE_RATED else [number % world.RATERS]
            rows += [
                {
                    "image_path": file,
                    "rating": int(votes[rater][number]),
                    "modality": MODALITY,
                    "expert_level": 2,
                    "prompt": text,
                }
                for rater in raters
            ]
        world.write_table(self.folder / "ratings.csv", rows)

    @staticmethod
    def asked(count: int) -> list[str]:
        """`count` prompts: every text in turn."""
        texts = world.captions(KINDS)
        return [texts[number % len(texts)] for number in range(count)]

    def sample(self, unet: Path, count: int, what: str, attempts: int = 1, scored: bool = False) -> Pictures:
        """`count` images as the campaign samples them; the same noise for the same `what` whatever the UNet.

        Args:
            unet: folder with the weights.
            count: of images.
            what: names the set; another one has other noise.
            attempts: candidates of each image, of which the one with the highest reward is taken.
            scored: whether rewards are asked for; they are with several attempts.
        """
        config, directory = self.config(), self.directory()
        recipe = Recipe.of(config, MODALITY)
        system = load_synthetic(config.model_paths.stable_diffusion, CPU, unet_from=unet)
        scorers = (
            (load_selector(directory.selector(MODALITY), CPU), load_policy(directory.policy(MODALITY), CPU))
            if scored or attempts > 1
            else (None, None)
        )
        sampler = ImageSampler(recipe, system, *scorers)
        wanted = [
            (Item(f"{what}-{number:04d}", text, 0), attempt)
            for number, text in enumerate(self.asked(count))
            for attempt in range(attempts)
        ]
        pictures: list[np.ndarray] = []
        rewards: list[float] = []
        for start in range(0, len(wanted), recipe.batch_size):
            batch = sampler.sample(wanted[start : start + recipe.batch_size])
            pictures += batch.pictures
            rewards += [_reward(vars(candidate)) for candidate in batch.candidates] if scorers[0] else []
        best = np.arange(count) * attempts
        if rewards:
            best = best + np.array(rewards).reshape(count, attempts).argmax(axis=1)
        pixels = np.stack([pictures[place] for place in best]).transpose(0, 3, 1, 2)
        colour = torch.from_numpy(pixels).expand(-1, 3, -1, -1)
        labels = [world.label_of(text) for text in self.asked(count)]
        return Pictures(colour, labels, np.array(rewards)[best] if rewards else None)


def _reward(scores: dict[str, float]) -> float:
    """What alignment rewards: both scorers' means minus their spreads, as a product."""
    quality, fit = (max(0.0, scores[name] - scores[f"{name}_spread"]) for name in ("selector", "policy"))
    return quality * fit


def task(stage: str) -> Task:
    """The task of the modality in a stage."""
    return Task(stage, 0, slug(MODALITY), MODALITY)
