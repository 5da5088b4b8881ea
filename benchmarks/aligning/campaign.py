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
RATED_BY_ALL = 40  # images that all raters have seen; each of the others was seen by one


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is."""

    images_per_kind: int = 600
    ratings: int = 500
    judged: int = 320


@dataclass(frozen=True)
class Candidates:
    """A attempts at each of N images, and what was asked for."""

    pixels: np.ndarray  # uint8 [A, N, 1, R, R]
    selector: np.ndarray  # [A, N], 0 where nobody was asked
    reward: np.ndarray  # [A, N]
    asked: list[Label]

    def with_more(self, others: Candidates) -> Candidates:
        """And more attempts at the same images."""
        pixels = np.concatenate([self.pixels, others.pixels])
        selector = np.concatenate([self.selector, others.selector])
        return Candidates(pixels, selector, np.concatenate([self.reward, others.reward]), self.asked)

    @property
    def best(self) -> Tensor:
        """Of each image the attempt with the highest reward: uint8 [N, 3, R, R]."""
        best = self.reward.argmax(axis=0)
        chosen = self.pixels[best, np.arange(len(best))]
        return torch.from_numpy(chosen).expand(-1, 3, -1, -1)


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
        count = self.sizes.ratings - (world.RATERS - 1) * RATED_BY_ALL
        texts, drawn = (
            self.asked(count),
            self.sample(self.directory().finetuned_unet(MODALITY), count, "rated", scored=False),
        )
        seen = eye.look(drawn.best, drawn.asked)
        right, quality = seen.is_right, seen.quality.argmax(axis=1)
        votes = [world.rate(right, quality, rater, self.number) for rater in range(world.RATERS)]
        (self.folder / "rated").mkdir(exist_ok=True)
        rows: list[dict[str, object]] = []
        for number, text in enumerate(texts):
            file = f"rated/{number:04d}.png"
            picture = drawn.pixels[0, number].transpose(1, 2, 0)
            disk.write_atomic(self.folder / file, encode_png(picture, {}))
            raters = range(world.RATERS) if number < RATED_BY_ALL else [number % world.RATERS]
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

    def sample(
        self, unet: Path, count: int, what: str, attempts: Sequence[int] = (0,), scored: bool = True
    ) -> Candidates:
        """Candidates of `count` images as the campaign samples them; for one `what` the same noise whatever the UNet.

        Args:
            unet: folder with the weights.
            count: of images.
            what: names the set; another one has other noise.
            attempts: which candidates of each image.
            scored: whether the scorers are asked.
        """
        config, directory, texts = self.config(), self.directory(), self.asked(count)
        recipe = Recipe.of(config, MODALITY)
        system = load_synthetic(config.model_paths.stable_diffusion, CPU, unet_from=unet)
        sampler = ImageSampler(recipe, system)
        if scored:
            selector, policy = directory.selector(MODALITY), directory.policy(MODALITY)
            sampler = ImageSampler(recipe, system, load_selector(selector, CPU), load_policy(policy, CPU))
        wanted = [
            (Item(f"{what}-{number:04d}", text, 0), attempt)
            for attempt in attempts
            for number, text in enumerate(texts)
        ]
        pictures: list[np.ndarray] = []
        scores: list[tuple[float, float]] = []
        for start in range(0, len(wanted), recipe.batch_size):
            batch = sampler.sample(wanted[start : start + recipe.batch_size])
            pictures += batch.pictures
            scores += [(one.selector or 0.0, _reward(vars(one)) if scored else 0.0) for one in batch.candidates]
        pixels = np.stack(pictures).transpose(0, 3, 1, 2).reshape(len(attempts), count, -1, *pictures[0].shape[:2])
        columns = np.array(scores).reshape(len(attempts), count, 2)
        return Candidates(pixels, columns[..., 0], columns[..., 1], [world.label_of(text) for text in texts])


def _reward(scores: dict[str, float]) -> float:
    """What alignment rewards: both scorers' means minus their spreads, as a product."""
    quality, fit = (max(0.0, scores[name] - scores[f"{name}_spread"]) for name in ("selector", "policy"))
    return quality * fit


def task(stage: str) -> Task:
    """The task of the modality in a stage."""
    return Task(stage, 0, slug(MODALITY), MODALITY)
