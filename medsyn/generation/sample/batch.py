"""One batch: from requested items to pictures with scores.

An image is a function of its prompt, replicate, attempt and overrides, the campaign's seed, the weights and the
recipe. Every batch has the same size, because the size changes bits; the other images in it change none.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsyn import time_use
from medsyn.config import Config
from medsyn.generation.block_store import Item, image_seed
from medsyn.generation.filter import Candidate
from medsyn.generation.sample.pictures import to_host
from medsyn.generation.write.provenance import device_name
from medsyn.models.pictures import quantise_all
from medsyn.models.policy import Policy
from medsyn.models.sampler import (
    Guidance,
    Run,
    Samples,
    build_scheduler,
    finite_rows,
    initial_noise,
)
from medsyn.models.score_images import policy_scores, selector_scores, to_pixels
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.schedulers import NOTHING_LEFT_OUT, SchedulerName, Shortcuts


@dataclass(frozen=True)
class Recipe:
    """How the images of one modality are sampled, unless an item overrides it."""

    modality: str
    seed: int
    height: int
    width: int
    scheduler: SchedulerName
    num_inference_steps: int
    guidance_scale: float
    batch_size: int
    negative_prompt: str = ""
    shortcuts: Shortcuts = NOTHING_LEFT_OUT

    @classmethod
    def of(cls, config: Config, modality: str) -> Recipe:
        """The recipe of a campaign."""
        section, side = config.generation, config.data.resolution
        return cls(
            modality=modality,
            seed=config.campaign.seed,
            height=side,
            width=side,
            scheduler=section.scheduler,
            num_inference_steps=section.num_inference_steps,
            guidance_scale=section.guidance_scale,
            batch_size=section.images_per_batch,
            negative_prompt=section.negative_prompt,
            shortcuts=section.shortcuts,
        )

    def guidance(self, item: Item) -> float:
        """The guidance scale of an item."""
        return self.guidance_scale if item.guidance_scale is None else item.guidance_scale

    def negative(self, item: Item) -> str:
        """The negative prompt of an item."""
        return self.negative_prompt if item.negative_prompt is None else item.negative_prompt

    def kind(self, item: Item) -> Hashable:
        """What the items of one batch must have in common: the steps, and whether there is any guidance."""
        return item.num_inference_steps or self.num_inference_steps, self.guidance(item) != 1

    def image_seed(self, item: Item, attempt: int) -> int:
        """The seed of one candidate."""
        return image_seed(self.seed, item, attempt)


@dataclass(frozen=True)
class Batch:
    """One batch of sampled images, without its padding, or a block's part of one that several blocks share."""

    candidates: list[Candidate]
    pictures: list[np.ndarray]  # uint8 [H, W, 1 or 3]
    unet_evaluations: int  # rows the whole UNet computed, padding included
    seconds: float
    device: str = ""  # what sampled it
    share: float = 1.0  # which part of a batch this is

    def split(self, owners: Sequence[Hashable]) -> list[Batch]:
        """The part of each owner, in the order in which they come first; together they have all that was spent.

        Args:
            owners: whose each candidate is.
        """
        found, before = [], 0
        for owner in dict.fromkeys(owners):
            mine = [number for number, whose in enumerate(owners) if whose == owner]
            after = before + len(mine)
            share = len(mine) / len(owners)
            part = Batch(
                [self.candidates[number] for number in mine],
                [self.pictures[number] for number in mine],
                self.unet_evaluations * after // len(owners) - self.unet_evaluations * before // len(owners),
                self.seconds * share,
                self.device,
                self.share * share,
            )
            found.append(part)
            before = after
        return found


STEPS_AHEAD = 2  # that a GPU is given before it has done those before them


@dataclass(frozen=True)
class ImageSampler:
    """The models of one modality in one mode, and how they are used."""

    recipe: Recipe
    system: SyntheticSystem
    selector: Selector | None = None  # the baseline has no scorers
    policy: Policy | None = None

    @property
    def overlaps(self) -> bool:
        """Whether a batch can be begun while the one before it is read back: on a GPU, which computes by itself."""
        return self.system.device.type == "cuda"

    def sample(self, wanted: Sequence[tuple[Item, int]]) -> Batch:
        """Sample, decode and score the attempts `wanted`: one batch of the recipe's size, padded by repetition.

        Args:
            wanted: 1 to `batch_size` items of one kind (`Recipe.kind`), each with its attempt.
        """
        return self.begin(wanted).finish()

    @time_use.of(time_use.PAINTING)
    def begin(self, wanted: Sequence[tuple[Item, int]], meanwhile: Callable[[], None] = lambda: None) -> Begun:
        """Give the device a batch to sample and decode; on a GPU without waiting for it.

        Args:
            wanted: as for `sample`.
            meanwhile: called once the device has been given the first steps, with which it is busy.
        """
        started = time.perf_counter()
        recipe, system = self.recipe, self.system
        padded = [*wanted, *[wanted[-1]] * (recipe.batch_size - len(wanted))]
        assert len({recipe.kind(item) for item, _ in padded}) == 1, "a batch is of one kind"
        steps = padded[0][0].num_inference_steps or recipe.num_inference_steps
        seeds = [recipe.image_seed(item, attempt) for item, attempt in padded]
        features = system.embed_all([item.prompt for item, _ in padded])
        run = Run(
            system.unet,
            lambda: build_scheduler(recipe.scheduler, system.scheduler_config, steps),
            torch.stack([hidden for hidden, _ in features]),
            self.guidance([item for item, _ in padded]),
            initial_noise(seeds, system.latent_shape(recipe.height, recipe.width)),
            seeds,
            system.whole,
        )
        latents, evaluations = run.begin(_paced(system.device, meanwhile))
        pixels, sound = system.decode_once(_numbers(latents))
        pooled = torch.stack([pooled for _, pooled in features])
        is_whole = (finite_rows(latents) & sound).all()
        pictures = Pictures.of(pixels, recipe.modality)
        decoded = _recorded(system.device)
        return Begun(self, wanted, run, (latents, evaluations), pictures, pooled, is_whole, decoded, started)

    def guidance(self, items: Sequence[Item]) -> Guidance:
        """The guidance of a batch of these items."""
        recipe = self.recipe
        return Guidance(
            torch.tensor([recipe.guidance(item) for item in items]),
            torch.stack([hidden for hidden, _ in self.system.embed_all([recipe.negative(item) for item in items])]),
            recipe.shortcuts,
        )

    @property
    def device_name(self) -> str:
        """What it runs on, as the records name it."""
        return device_name(self.system.device)

    def scores(self, pictures: Tensor, pooled: Tensor) -> list[dict[str, Any]]:
        """What the scorers say of every picture, uint8 [N, H, W, 1 or 3], as it will be written, for `Candidate`."""
        if self.selector is None or self.policy is None:
            return [{}] * len(pictures)
        pixels = to_pixels(pictures, self.system.device)
        selector = selector_scores(self.selector, pixels, self.recipe.modality)
        policy = policy_scores(self.policy, pixels, pooled, self.recipe.modality)
        columns = {
            "selector": selector.score,
            "policy": policy.score,
            "selector_spread": selector.spread,
            "policy_spread": policy.spread,
            "unfamiliar": selector.unfamiliar,
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Pictures:
    """A batch that has been decoded."""

    written: Tensor  # uint8 [N, H, W, 1 or 3]
    decodable: Tensor  # bool [N]

    @classmethod
    def of(cls, pixels: Tensor, modality: str) -> Pictures:
        """Those of pixels [N, 3, H, W] in 0..1, which need not be finite."""
        return cls(quantise_all(_numbers(pixels), modality), finite_rows(pixels))


@dataclass(frozen=True)
class Begun:
    """A batch on its way; nobody has waited for the device yet."""

    sampler: ImageSampler
    wanted: Sequence[tuple[Item, int]]
    run: Run
    begun: tuple[Tensor, int]  # what the run came to
    pictures: Pictures  # what its latents were decoded to
    pooled: Tensor  # text features [N, D] of the prompts
    is_whole: Tensor  # bool [], whether no number overflowed
    decoded: torch.cuda.Event | None  # when all of that is there, on a GPU
    started: float

    @time_use.of(time_use.PAINTING)
    def finish(self) -> Batch:
        """Wait for it, score it and read it back, while the device may be at work on the next one."""
        with self._beside():
            if bool(self.is_whole):
                return self._read(self.run.finish(*self.begun), self.pictures)
        # in the order of the device's work: float32 weights take the place of those that it samples with
        samples = self.run.finish(*self.begun)
        pixels = self.sampler.system.decode(_numbers(samples.latents))
        return self._read(samples, Pictures.of(pixels, self.sampler.recipe.modality))

    def _beside(self) -> AbstractContextManager[Any]:
        """What is done in here waits for the batch, and not for what the device has been given since."""
        if self.decoded is None:
            return nullcontext()
        stream = _second_stream(self.is_whole.device)
        stream.wait_event(self.decoded)
        return torch.cuda.stream(stream)

    def _read(self, samples: Samples, pictures: Pictures) -> Batch:
        with time_use.of(time_use.SCORING):
            scores = self.sampler.scores(pictures.written, self.pooled)
        decodable = pictures.decodable.tolist()
        candidates = [
            _candidate(attempt, seed, samples.finite[i] and decodable[i], scores[i], samples.precision[i])
            for i, ((_, attempt), seed) in enumerate(zip(self.wanted, self.run.seeds, strict=False))
        ]
        evaluations = samples.evaluations * self.sampler.recipe.batch_size
        seconds = time.perf_counter() - self.started
        return Batch(candidates, to_host(pictures.written[: len(self.wanted)]), evaluations, seconds)


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _recorded(device: torch.device) -> torch.cuda.Event | None:
    """Tells when a GPU has done all that it has been given; nothing on a CPU, which has done it."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _paced(device: torch.device, meanwhile: Callable[[], None]) -> Callable[[int], None]:
    """What to call after each step, so that a GPU has `STEPS_AHEAD` steps to do and no more; it calls `meanwhile`.

    With more of them to do, whoever asks for a stop would wait for a whole batch that need not be made.
    """
    given: deque[torch.cuda.Event] = deque()

    def after_step(index: int) -> None:
        if (event := _recorded(device)) is not None:
            given.append(event)
            if len(given) > STEPS_AHEAD:
                given.popleft().synchronize()
        if index + 1 == STEPS_AHEAD:
            meanwhile()

    return after_step


def _candidate(attempt: int, image: int, finite: bool, scores: Mapping[str, Any], precision: str) -> Candidate:
    finite = finite and all(math.isfinite(score) for score in scores.values())
    return Candidate(attempt, image, finite, precision=precision, **(scores if finite else {}))


def _numbers(values: Tensor) -> Tensor:
    """Replace non-finite values by zero: the image is lost, the batch keeps its size."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
