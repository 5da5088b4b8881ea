"""Images from prompts as an iterator: the Python interface for other tools.

>>> from medsyn import Generator
>>> generator = Generator("embedded", seed=3, device="cpu", num_inference_steps=2)
>>> for image in generator.images("Chest X-ray: clear lungs", count=2):
...     image.save(folder / f"{image.item.replicate}.png")
>>> image.pixels.shape
(64, 64, 1)
>>> image.record["modality"], image.record["selector"]
('X-Ray', None)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from medsyn import disk
from medsyn.arms import Mode
from medsyn.config import Config, Precision
from medsyn.generation.api.arguments import Settings, campaign_settings, given_settings
from medsyn.generation.api.options import Sampling
from medsyn.generation.api.prompts import Wanted, check_prompts
from medsyn.generation.block_store import Item
from medsyn.generation.evidence import doubts
from medsyn.generation.filter import Rule, next_batch
from medsyn.generation.make.block import Order, Progress
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.generation.write import provenance
from medsyn.models.compiled import compiled
from medsyn.models.scorers import load_policy, load_selector
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.records import ImageRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedImage:
    """One settled prompt and replicate: its image, if there is one, and its record."""

    item: Item
    record: ImageRecord  # as in a campaign's manifest
    pixels: np.ndarray | None  # uint8 [H, W, 1 or 3]; None: no candidate passed the filter
    png: bytes | None  # the file: marked as synthetic, with its record as text

    @property
    def accepted(self) -> bool:
        """Whether it passed the filter; always true without one."""
        return bool(self.record["accepted"])

    def save(self, path: str | Path) -> None:
        """Write the PNG file, creating parent directories; raises ValueError without an image, OSError if it fails."""
        if self.png is None:
            raise ValueError(f"{self.item.prompt_id} has no image: {self.record['reason']}")
        disk.write_atomic(Path(path), self.png)


class Generator:
    """Loads a model once and generates images for any prompts: the same ones as a campaign with the same settings.

    An image depends on its prompt, its number, the seed, the settings and the weights, and on nothing else: not on
    the other prompts, nor on how often the generator was used before, nor on whether an iterator was abandoned early.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        finetuned: str | Path | None = None,
        selector: str | Path | None = None,
        policy: str | Path | None = None,
        device: str = "auto",
        precision: Precision | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        **sampling: Unpack[Sampling],
    ) -> None:
        """Load the models.

        With a UNet or scorers that a campaign made, everything that is not given is as in that campaign.

        Args:
            model: `embedded` (the default), a diffusers directory, or a hub id in the local cache.
            finetuned: directory that contains a fine-tuned `unet/`.
            selector: directory of a trained Selector; together with `policy` it filters the candidates.
            policy: directory of a trained Policy.
            device: `auto` (the first visible GPU if there is one), `cpu` or `cuda:N`.
            precision: of the UNet; `auto` (the default) lets the device's capability decide.
            height: pixels, a multiple of 8 from 32 to 1024; defaults to 256, or to 64 for the embedded model, which
                was trained at that size.
            width: pixels; defaults to the height.
            seed: of all images, from 0 (the default) to 2^63 - 1.
            sampling: how images are sampled: `num_inference_steps` (1 to 1000), `scheduler` (a name of
                `medsyn.schedulers.SOLVERS`), `guidance_scale` (1 to 1000; 1 is off), `guidance_interval` ([start, end],
                shares of the steps), `fast` (leave out what was measured to change little), or its parts
                `deep_cache_every` and `text_attention_until`, `negative_prompt`, `batch_size` (candidates denoised
                together; 4), `batches_per_block` (4); with the filter `quality_threshold` (Selector score 0 to 1 that
                an image needs, or `auto`: what the Selector says itself), `min_policy_score` (0 to 1), `num_candidates`
                (passing ones to choose from; 3), `max_attempts` (candidates of one image at most), `on_exhausted`
                (`fail`, `skip` or `keep-best`). Where no default is said it is that of the configuration's section
                `generation`.

        Raises:
            InputProblems: everything wrong with the arguments, each named, before anything is loaded.
            InputError: weights that exist but cannot be read.
            BadNode: a GPU was assigned to this process but cannot be used.
        """
        given: dict[str, Any] = {"model": model, "finetuned": finetuned, "selector": selector, "policy": policy}
        given |= {"precision": precision, "height": height, "width": width, "seed": seed}
        given = {name: value for name, value in given.items() if value is not None}
        self._load(given_settings({**given, "device": device, **sampling}))

    @classmethod
    def from_config(cls, config: Config, modality: str, mode: Mode = "filtered") -> Generator:
        """The generator that a campaign's `generate` tasks use: the same prompts give the same images.

        Args:
            config: the campaign's, with its directory as `campaign.dir`.
            modality: whose fine-tuned UNet and Policy are used; any usual spelling. The generator makes no other, and
                prompts need not start with it.
            mode: an arm (`medsyn.arms`): `filtered`, or `baseline` for the first candidate of
                `generation.baseline_model`, whatever it is.

        Raises:
            InputProblems: `modality` or `mode` is unknown, or the pretrained weights are missing.
            InputError: the campaign has not made the models yet, `generation.batch_size` is `auto`, or its Selector is
                not shown to be better than chance (`selector.require_auroc`).
            BadNode: a GPU was assigned to this process but cannot be used.
        """
        made = cls.__new__(cls)
        made._load(campaign_settings(config, modality, mode))
        return made

    def _load(self, settings: Settings) -> None:
        source, chosen = settings.config.model_paths.stable_diffusion, settings.device
        self._settings = settings
        self._doubted: set[str] = set()  # modalities whose scores have been warned of
        chunks = settings.config.data.chunks
        self._system = load_synthetic(source, chosen.device, chosen.dtype, settings.unet, text_chunks=chunks)
        self._system.whole = compiled(self._system.unet) if chosen.compiled else None
        self._selector = None if settings.selector is None else load_selector(settings.selector, chosen.device)
        self._policy = None if settings.policy is None else load_policy(settings.policy, chosen.device)
        environment = provenance.compute_environment(chosen.device, chosen.dtype, chosen.compiled)
        self._provenance = {**settings.provenance, **environment}

    def next_replicate(self, wanted: Wanted, records: Iterable[Mapping[str, Any]]) -> int:
        """The first replicate of a prompt that is not on record yet: of this model, with this noise and these settings.

        Args:
            wanted: the prompt.
            records: of the images there are.
        """
        settings, section = self._settings, self._settings.config.generation
        recipe = Recipe.of(settings.config, wanted.modality)
        known = {"id": wanted.item.prompt_id, **provenance.settings(section)}
        known |= {key: self._provenance[key] for key in ("mode", "model_fingerprint", "scheduler")}
        sizes = {"height": settings.height, "width": settings.width}

        def is_of_this(record: Mapping[str, Any]) -> bool:
            if any(record.get(key) != value for key, value in known.items()):
                return False
            if record.get("file") is None:  # no candidate passed: it has neither a size nor a seed
                return True
            item = replace(wanted.item, replicate=record["replicate"])
            same_size = all(record.get(key) == value for key, value in sizes.items())
            return same_size and record["seed"] == recipe.image_seed(item, record["attempt"])

        return max((record["replicate"] + 1 for record in records if is_of_this(record)), default=0)

    def images(
        self, prompts: str | Item | Iterable[str | Item], count: int = 1, modality: str | None = None
    ) -> Iterator[GeneratedImage]:
        """Generate `count` images of every prompt, in order, batch by batch as they are requested.

        Args:
            prompts: one or more texts, or items with their own settings (an item is one image). A text must meet the
                rules for a row of a prompt list: one line, at most 10,000 characters, something after the modality.
            count: images of each text.
            modality: of prompts that do not start with one, as in `CT: …`; any usual spelling. A campaign's generator
                already has one.

        Raises:
            InputProblems: everything wrong with the arguments, raised by the call itself and not at the first image.
            InputError: the threshold is `auto`, and the Selector has none for a prompt's modality.
        """
        wanted, warnings = check_prompts(prompts, count, modality, self._settings.config, self._settings.modality)
        for modality in dict.fromkeys(one.modality for one in wanted):
            self._facts(modality)
            self._tell_doubts(modality)
        for warning in warnings:
            _log.warning("%s", warning)
        return self.images_of(wanted)

    def images_of(self, wanted: Iterable[Wanted]) -> Iterator[GeneratedImage]:
        """`images` of prompts that `check_prompts` has passed, without checking them or warning about them again."""
        size = self._settings.config.generation.block_size
        for modality, neighbours in groupby(wanted, lambda one: one.modality):
            items = (item for one in neighbours for item in one.items())
            while block := list(islice(items, size)):
                yield from self._block(block, modality)

    def _tell_doubts(self, modality: str) -> None:
        """Warn, once, where the Selector's scores may mean little."""
        if (selector := self._settings.selector) is None or modality in self._doubted:
            return
        self._doubted.add(modality)
        for reason in doubts(self._settings.config, selector, modality):
            _log.warning("%s: %s", selector, reason)

    def _facts(self, modality: str) -> dict[str, Any]:
        """What is recorded with every image of a modality."""
        facts = {**self._provenance, "modality": modality}
        if self._settings.selector is not None:
            where = self._settings.selector
            facts["quality_threshold"] = provenance.quality_threshold(self._settings.config, where, modality)
        return facts

    def _block(self, items: Sequence[Item], modality: str) -> Iterator[GeneratedImage]:
        settings, section = self._settings, self._settings.config.generation
        recipe = replace(Recipe.of(settings.config, modality), height=settings.height, width=settings.width)
        sampler = ImageSampler(recipe, self._system, self._selector, self._policy)
        facts = self._facts(modality)
        rule = Rule.of(section, settings.mode, facts.get("quality_threshold"))
        order = Order(Path(), items, rule, facts, provenance.settings(section))
        progress = Progress.begin(order, recipe)
        told = 0
        while places := next_batch(progress.trials, recipe.batch_size):
            batch = sampler.sample([(items[position], attempt) for position, attempt in places])
            progress.take(places, batch)
            while told < len(items) and progress.trials[told].settled:
                pixels = progress.favourites.get(told) if progress.trials[told].winner else None
                progress.publish([told])
                record, png, _ = progress.published.pop(told)
                yield GeneratedImage(items[told], record, pixels, png)
                told += 1
