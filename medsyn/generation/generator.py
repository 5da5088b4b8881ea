"""Images from prompts as an iterator: the import path for tools.

from medsyn import Generator

for image in Generator("embedded", seed=3).images("Chest X-ray: clear lungs", count=4):
    image.save("out/" + image.record["file"])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medsyn import disk
from medsyn.config import EMBEDDED, Config, validate
from medsyn.data.modalities import clean_text, split_prefix
from medsyn.data.tables import MODALITIES
from medsyn.errors import InputError
from medsyn.generation.block import Order, Progress
from medsyn.generation.facts import circumstances, common, settings
from medsyn.generation.filter import Rule, Trial, next_batch
from medsyn.generation.painter import Painter, Recipe
from medsyn.generation.shard import Item
from medsyn.models.device import choose_device
from medsyn.models.scorers import load_policy, load_selector
from medsyn.models.synthetic import load_synthetic
from medsyn.models.weights import model_fingerprint
from medsyn.stage import slug

DEFAULT_SIDE, EMBEDDED_SIDE = 256, 64  # pixels


@dataclass(frozen=True)
class GeneratedImage:
    """One prompt and replicate that is settled: its image, if there is one, and what is on record about it."""

    item: Item
    record: Mapping[str, Any]  # as in a campaign's manifest
    pixels: np.ndarray | None  # uint8 [H, W, 1 or 3]; None: no candidate passed the filter
    png: bytes | None  # the file: marked as synthetic, with its record as text

    @property
    def accepted(self) -> bool:
        """Whether it passed the filter, or there was none."""
        return bool(self.record["accepted"])

    def save(self, path: str | Path) -> None:
        """Write the PNG file; raises ValueError if there is no image."""
        if self.png is None:
            raise ValueError(f"{self.item.prompt_id} has no image: {self.record['reason']}")
        disk.write_atomic(Path(path), self.png)


class Generator:
    """Loads a model once and makes images of any prompts of it; the same images as a campaign with these settings.

    An image depends on its prompt, its number, the seed, the settings and the weights, and on nothing else: not on
    the prompts beside it, nor on how often the generator was used before.
    """

    def __init__(
        self,
        model: str = "embedded",
        *,
        finetuned: str | Path | None = None,
        selector: str | Path | None = None,
        policy: str | Path | None = None,
        device: Literal["auto", "cpu"] = "auto",
        precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        **generation: Any,
    ) -> None:
        """Load what makes the images.

        Args:
            model: `embedded`, a diffusers directory, or a hub id in the local cache.
            finetuned: directory with a fine-tuned `unet/`.
            selector: directory of a trained Selector; with `policy` it filters the candidates.
            policy: directory of a trained Policy.
            device: `auto` is the first visible GPU if there is one.
            precision: of the UNet; `auto` lets the device's capability decide.
            height: pixels, a multiple of 8; 256 if not given, 64 for the embedded model, which was trained at that.
            width: pixels; the height if not given.
            seed: what all images depend on.
            generation: keys of the configuration's section `generation`, such as `scheduler`,
                `num_inference_steps`, `guidance_scale`, `batch_size`, `quality_threshold`, `max_attempts`.

        Raises:
            InputError, InputProblems: weights that are not there, or settings that cannot work, one line each.
        """
        if (selector is None) != (policy is None):
            raise InputError("generator", "the filter needs both a Selector and a Policy")
        self._mode = "baseline" if selector is None else "filtered"
        self._config = _configuration(model, device, precision, seed, {**generation, "modes": [self._mode]})
        height = height or (EMBEDDED_SIDE if model == EMBEDDED else DEFAULT_SIDE)
        self._size = _size(height), _size(width or height)
        chosen = choose_device(self._config.device)
        unet = None if finetuned is None else _with_unet(Path(finetuned))
        self._system = load_synthetic(model, chosen.device, chosen.dtype, unet)
        self._fingerprint = model_fingerprint(model, unet)
        self._selector = None if selector is None else load_selector(Path(selector), chosen.device)
        self._policy = None if policy is None else load_policy(Path(policy), chosen.device)

    def images(
        self, prompts: str | Item | Iterable[str | Item], count: int = 1, modality: str | None = None
    ) -> Iterator[GeneratedImage]:
        """Make `count` images of every prompt, in order.

        Args:
            prompts: one or more texts, or items with settings of their own (an item is one image).
            count: images of each text.
            modality: one of the five, for prompts that do not start with theirs, as in `CT: …`.
        """
        asked = [prompts] if isinstance(prompts, (str, Item)) else list(prompts)
        runs: list[tuple[str, list[Item]]] = []  # neighbours of one modality
        repeats: Counter[tuple[str, str]] = Counter()
        for prompt in asked:
            its = modality or split_prefix(prompt if isinstance(prompt, str) else prompt.prompt)[0]
            if its is None or its not in MODALITIES:
                reason = f"which modality? Let it start with one and a colon ({', '.join(MODALITIES)}), or name it"
                raise InputError(f"prompt {prompt!r}", reason)
            if isinstance(prompt, Item):
                items = [prompt]
            else:
                repeats[its, clean_text(prompt)] += 1
                repeat = repeats[its, clean_text(prompt)]
                items = [_item(prompt, its, number, repeat) for number in range(count)]
            if not runs or runs[-1][0] != its:
                runs.append((its, []))
            runs[-1][1].extend(items)
        for its, items in runs:
            size = self._config.generation.block_size
            for start in range(0, len(items), size):
                yield from self._block(items[start : start + size], its)

    def _block(self, items: Sequence[Item], modality: str) -> Iterator[GeneratedImage]:
        recipe = replace(Recipe.of(self._config, modality), height=self._size[0], width=self._size[1])
        painter = Painter(recipe, self._system, self._selector, self._policy)
        facts = {
            **common(self._config, modality, self._mode, self._fingerprint),
            **circumstances(self._system.device, self._system.dtype),
        }
        rule = Rule.of(self._config.generation, self._mode)
        progress = Progress(
            Order(Path(), items, rule, facts, settings(self._config.generation)), [Trial(rule) for _ in items]
        )
        kinds = [recipe.kind(item) for item in items]
        told = 0
        while places := next_batch(progress.trials, recipe.batch_size, kinds):
            batch = painter.paint([(items[position], attempt) for position, attempt in places])
            progress.take(places, batch)
            while told < len(items) and progress.trials[told].settled:
                pixels = progress.favourites.get(told) if progress.trials[told].winner else None
                progress.publish([told])
                record, png, _ = progress.published.pop(told)
                yield GeneratedImage(items[told], record, pixels, png)
                told += 1


def _item(prompt: str, modality: str, replicate: int, repeat: int) -> Item:
    """The item that a campaign makes of the `repeat`-th such prompt without an id: the same images."""
    text = clean_text(prompt)
    if split_prefix(text)[0] is None:
        text = f"{modality}: {text}"
    return Item(f"{slug(modality)}-{disk.fingerprint([modality, text, repeat])[:16]}", text, replicate)


def _size(pixels: int) -> int:
    if pixels % 8 or not 32 <= pixels <= 1024:
        raise InputError("height and width", f"are multiples of 8 from 32 to 1024, got {pixels}")
    return pixels


def _with_unet(directory: Path) -> Path:
    """The directory that holds the `unet/`: the one given, or its parent if that is the `unet/` itself."""
    for candidate in (directory, directory.parent):
        if (candidate / "unet" / "diffusion_pytorch_model.safetensors").is_file():
            return candidate
    raise InputError(directory, "holds no unet/diffusion_pytorch_model.safetensors")


def _configuration(model: str, device: str, precision: str, seed: int, generation: Mapping[str, Any]) -> Config:
    tree = {
        "campaign": {"seed": seed},
        "model_paths": {"stable_diffusion": model},
        "device": {"use_cuda": device != "cpu", "precision": precision},
        "generation": {"batch_size": 4, "num_candidates": 1, **generation},
    }
    return validate(tree, "generator")
