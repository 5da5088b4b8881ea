"""What one alignment reads: tables, prompts, the models of earlier stages, and where it keeps what it computes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medsyn import disk
from medsyn.config import FREE_OF_ALIGN, SAMPLING, Config, flatten
from medsyn.data.images.latent_cache import TensorCache, hash_files
from medsyn.data.prompts.store import open_lists
from medsyn.data.tables.read import ImageRow
from medsyn.data.tables.split import groups
from medsyn.errors import InputError
from medsyn.models.cards import lacking, read_card, threshold_of
from medsyn.models.device import Device, choose_device
from medsyn.models.scorers import WEIGHTS, load_policy, load_selector
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.models.weights import UNET_WEIGHTS, model_fingerprint, unet_sha256, weights_fingerprint
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Task, slug
from medsyn.training.alignment import known, real_images
from medsyn.training.alignment.candidates import Scorers, scorers_sha256
from medsyn.training.finetune.dataset import training_rows
from medsyn.training.own_samples import choose_prompts
from medsyn.training.scorers.judged import judged_groups
from medsyn.training.scorers.rated import rated_pairs, rated_rows


class Sources:
    """Everything that a task reads, and the cards of the models that it starts from."""

    def __init__(self, config: Config, task: Task, directory: CampaignDirectory) -> None:
        """Read the tables and look for the models.

        Raises:
            InputProblems: a table has bad rows (`data.strict`) or none.
            InputError: an earlier stage has not run.
        """
        assert task.modality is not None
        self.config, self.modality, self.directory = config, task.modality, directory
        finetuning = slug(config.finetune.task_for(task.modality))
        self.finetuned = directory.finetuned_unet(finetuning)
        of = None if config.training.stage == 1 else task.modality
        scorers = "rlhf-stage1 all" if of is None else f"rlhf-stage2 {slug(of)}"
        self._selector, self._policy = directory.selector(of), directory.policy(of)
        _require(self.finetuned / "unet" / UNET_WEIGHTS, f"finetune {finetuning}")
        _require(self._selector / WEIGHTS, scorers)
        _require(self._policy / WEIGHTS, scorers)
        self.rows, held_out = training_rows(config, task.modality)
        everything, pairs = rated_rows(config), rated_pairs(config)
        files = ((row.a.file, row.b.file) for row in pairs)
        self.group_of = groups([*everything, *self.rows, *held_out], files)
        self.held_out = known.by_lot(held_out, config.campaign.seed)
        judged = judged_groups(config, everything, self.group_of)
        self.judged = [row for row in everything if self.group_of[row.file] in judged]  # of every modality
        self.ratings = [
            row for row in everything if row.modality == task.modality and self.group_of[row.file] not in judged
        ]
        poor = {row.path for row in self.ratings} - {row.path for row in real_images.rated_good(self.ratings)}
        own = [row for row in self.rows if row.path not in poor and self.group_of[row.file] not in judged]
        self.candidates_for_real = real_images.by_lot(own, config.campaign.seed)
        self.rated_good = real_images.rated_good(self.ratings)
        self.latents_folder = directory.root / "cache" / finetuning
        self.folder = directory.root / "cache" / f"align-{task.name}"
        disk.sweep_temporaries(self.folder)
        seen = [row.path for row in (*self.candidates_for_real, *self.rated_good, *self.held_out)]
        seen += [row.path for row in self.judged]
        self.hashes = hash_files(seen, self.folder / "files.json")
        self.scorers_sha256 = scorers_sha256(self._selector / WEIGHTS, self._policy / WEIGHTS)

    @functools.cached_property
    def device(self) -> Device:
        """Where it computes, and in what it samples."""
        return choose_device(self.config.device)

    @functools.cached_property
    def cache(self) -> TensorCache:
        """Candidates and what is computed of them, as they are."""
        return TensorCache(self.folder, None)

    @functools.cached_property
    def latents(self) -> TensorCache:
        """The fine-tuning's latents and text features."""
        return TensorCache(self.latents_folder)

    @functools.cached_property
    def threshold(self) -> float:
        """The Selector score from which an image passes."""
        configured = self.config.generation.quality_threshold
        if configured != "auto":
            return configured
        own = threshold_of(read_card(self._selector), self.modality)
        return 0.5 if own is None else own.threshold

    @property
    def doubt(self) -> str | None:
        """Why the Selector must not choose what is learned; None if it may: the rule by which it chooses images."""
        return lacking(self.config, self._selector, self.modality)

    @functools.cached_property
    def scorers(self) -> Scorers:
        """The Selector and the Policy, loaded."""
        device = self.device.device
        return Scorers(load_selector(self._selector, device), load_policy(self._policy, device), self.scorers_sha256)

    @functools.cached_property
    def texts(self) -> list[str]:
        """What prompts are chosen from: those of the campaign, by lot; training captions where it has none.

        Captions may ask for what nobody wants, as poor quality.
        """
        return self._campaign_prompts("align") or list(dict.fromkeys(row.text for row in self.rows))

    @functools.cached_property
    def judged_texts(self) -> list[str]:
        """What the judge's prompts are chosen from: those of the campaign by another lot, or held-out captions."""
        return self._campaign_prompts("judge") or list(dict.fromkeys(row.text for row in self.held_out))

    def prompts(self, number: int) -> list[str]:
        """The prompts of a round."""
        section, config = self.config.align, self.config
        return choose_prompts(self.texts, section.prompts, config.campaign.seed, "align", self.modality, number)

    def _campaign_prompts(self, lot: str) -> list[str]:
        if self.config.data.prompts is None:
            return []
        found = open_lists(Path(self.config.data.prompts)).get(self.modality)
        if found is None or not found.prompts:
            return []
        count = min(found.prompts, max(self.config.align.prompts, self.config.align.judge_images))
        rng = np.random.default_rng(seed(self.config.campaign.seed, "campaign's prompts", lot, self.modality))
        chosen = rng.choice(found.prompts, count, replace=False, shuffle=False)
        return [found.prompt(int(number)).prompt for number in np.sort(chosen)]

    def fingerprint(self, generator: Path) -> str:
        """Of the model with the UNet in a folder."""
        return model_fingerprint(self.config.model_paths.stable_diffusion, unet_sha256(generator), generator)

    def load_system(self, generator: Path | None) -> SyntheticSystem:
        """The generator with the UNet in a folder, as generation loads it; without a UNet, for training beside it."""
        chosen, chunks = self.device, self.config.data.chunks
        source = self.config.model_paths.stable_diffusion
        if generator is None:
            return load_synthetic(source, chosen.device, with_unet=False, text_chunks=chunks)
        return load_synthetic(source, chosen.device, chosen.dtype, generator, text_chunks=chunks)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the weights depend on, under the configuration's key names; a resumed run must agree with all of it."""
        config = self.config
        section = {name: value for name, value in config.align.model_dump().items() if name not in FREE_OF_ALIGN}
        section |= {"beta": config.align.strength}
        sampling = {name: value for name, value in config.generation.model_dump().items() if name in SAMPLING}
        return {
            "campaign.seed": config.campaign.seed,
            "data.resolution": config.data.resolution,
            **({"data.text_chunks": config.data.chunks} if config.data.chunks > 1 else {}),
            "data.table": self._contents(self.candidates_for_real),
            "data.held_out": self._contents(self.held_out),
            "data.ratings_file": disk.fingerprint(
                [[row.file, row.rating, row.prompt, row.expert_level] for row in self.ratings]
            ),
            "judge": disk.fingerprint([[row.file, row.rating, self.hashes[row.path]] for row in self.judged]),
            "data.prompts": disk.fingerprint([self.texts, self.judged_texts]),
            "model_paths.stable_diffusion": weights_fingerprint(config.model_paths.stable_diffusion),
            "finetune": unet_sha256(self.finetuned),
            "rlhf": self.scorers_sha256,
            "generation.quality_threshold": self.threshold,
            "selector.require_auroc": config.selector.require_auroc,
            **dict(flatten(sampling, "generation.")),
            **dict(flatten(section, "align.")),
        }

    def _contents(self, rows: list[ImageRow]) -> str:
        hashes: Mapping[Path, str] = self.hashes
        return disk.fingerprint([[row.file, row.text, hashes[row.path]] for row in rows])


def _require(path: Path, task: str) -> None:
    if not path.is_file():
        raise InputError(path, f"is missing; the task '{task}' makes it")
