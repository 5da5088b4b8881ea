"""Three ways of making images, each with three amounts of work around the painting.

painting    images in memory
files       every image encoded and written as a PNG file
filter      every image scored; files of those that pass, another attempt for those that do not
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image

from medsyn.generation.block_store import ATTEMPTS, Item, read_manifest
from medsyn.generation.filter import Rule
from medsyn.generation.make.block import Order
from medsyn.generation.make.packing import OpenBlock, make_blocks
from medsyn.generation.make.writer_thread import Writer
from medsyn.generation.sample.batch import ImageSampler
from medsyn.models.stable_diffusion import SyntheticSystem
from painting.models import Judge, pipeline

Work = Literal["painting", "files", "filter"]
WORKS: tuple[Work, ...] = ("painting", "files", "filter")
SPECIFICATION_STEPS = 50
BATCHES_PER_BLOCK = 4
MAX_ATTEMPTS = 6
FINDINGS = ("clear lungs", "effusion, left", "nodule, right", "cardiomegaly")


def prompt(number: int) -> str:
    """The prompt of an image: each has its own, as in a list."""
    return f"X-Ray: {FINDINGS[number % len(FINDINGS)]}, patient {number}"


@dataclass(frozen=True)
class Made:
    """What a run came to."""

    candidates: int
    images: int


class Way(Protocol):
    """A way of making images."""

    def __call__(self, images: int, work: Work, folder: Path) -> Made:
        """Make so many images, files below the new directory `folder`."""
        ...


class Diffusers:
    """Calls of a diffusers pipeline, `batch` prompts in each, one after the other as a script of few lines does it.

    Images that do not pass go to the end of the queue, so batches of retries are full as well.
    """

    def __init__(self, system: SyntheticSystem, judge: Judge, scheduler: Any, steps: int, batch: int, pixels: int):
        self.system, self.judge, self.batch = system, judge, batch
        self.pipe = pipeline(system, scheduler, steps)
        self.options = {"num_inference_steps": steps, "height": pixels, "width": pixels, "guidance_scale": 7.5}

    def __call__(self, images: int, work: Work, folder: Path) -> Made:
        """See `Way`."""
        folder.mkdir()
        queue = [(number, 0) for number in range(images)]
        candidates = made = 0
        while queue:
            batch, queue = queue[: self.batch], queue[self.batch :]
            prompts = [prompt(number) for number, _ in batch]
            pictures = self.pipe(prompts, **self.options).images
            candidates += len(batch)
            if work == "painting":
                made += len(batch)
                continue
            grey = [picture.convert("L") for picture in pictures]
            passes = self._passes(grey, prompts) if work == "filter" else [True] * len(batch)
            for (number, attempt), picture, passed in zip(batch, grey, passes, strict=True):
                if passed:
                    picture.save(folder / f"{number}.png")
                    made += 1
                elif attempt + 1 < MAX_ATTEMPTS:
                    queue.append((number, attempt + 1))
        return Made(candidates, made)

    def _passes(self, grey: Sequence[Image.Image], prompts: Sequence[str]) -> list[bool]:
        pooled = torch.stack([self.system.embed(prompt)[1] for prompt in prompts])
        return self.judge.passes([np.asarray(picture) for picture in grey], pooled)


class Medsyn:
    """The sampler that `generate` uses; with files, blocks are committed to disk beside it."""

    def __init__(self, sampler: ImageSampler, judge: Judge):
        self.sampler, self.judge = sampler, judge

    def __call__(self, images: int, work: Work, folder: Path) -> Made:
        """See `Way`."""
        items = [Item(f"x-{number}", prompt(number), 0) for number in range(images)]
        if work == "painting":
            size = self.sampler.recipe.batch_size
            for start in range(0, images, size):
                self.sampler.sample([(item, 0) for item in items[start : start + size]])
            return Made(images, images)
        return self._blocks(items, work == "filter", folder)

    def _blocks(self, items: Sequence[Item], filtered: bool, folder: Path) -> Made:
        sampler, threshold = self.sampler, None
        if filtered:
            sampler = replace(sampler, selector=self.judge.selector, policy=self.judge.policy)
            threshold = self.judge.threshold
        rule = Rule(1, MAX_ATTEMPTS if filtered else 1, threshold, None, "skip")
        facts = {"modality": "X-Ray", "mode": "-", "model_fingerprint": "-", "config_fingerprint": "-"}
        size = BATCHES_PER_BLOCK * sampler.recipe.batch_size
        orders = [
            Order(folder / f"block-{start:06d}", items[start : start + size], rule, facts, {})
            for start in range(0, len(items), size)
        ]
        blocks = [order.path for order in orders]
        with Writer() as writer:
            further = (OpenBlock.open(order, sampler.recipe, writer) for order in orders)
            deque(make_blocks([], further, sampler, writer), maxlen=0)
        candidates = sum(len((block / ATTEMPTS).read_bytes().splitlines()) for block in blocks)
        manifests = [record for block in blocks for record in read_manifest(block) or []]
        return Made(candidates, sum(record["accepted"] for record in manifests))
