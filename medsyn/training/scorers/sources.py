"""What a stage of RLHF learns from: the tables' rows, whose images are hashed at once and read when they are needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsyn import disk
from medsyn.config import PHANTOMS, Config, ScorerSection, flatten
from medsyn.data.images.latent_cache import TensorCache, hash_files
from medsyn.data.images.own_sampling import Sampling, sampling_of
from medsyn.data.tables.pairs import PairRow
from medsyn.data.tables.read import ImageRow, RatingRow, dataset_of
from medsyn.data.tables.split import groups, hold_out
from medsyn.models.device import choose_device
from medsyn.models.policy import NETWORK
from medsyn.models.weights import model_fingerprint, unet_sha256, weights_fingerprint
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.scorers.captions import Captioned, Texts, collect_texts
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.folds import split_into_folds
from medsyn.training.scorers.judged import judged_groups
from medsyn.training.scorers.rated import GOOD, Loading, RatedPairs, RatedSet, load_rated, rated_pairs, rated_rows
from medsyn.training.scorers.remembered import Remembered

if TYPE_CHECKING:
    from medsyn.models.stable_diffusion import SyntheticSystem

CAPTIONED = 256  # images of the table, of a modality, that the Policy learns from, at most
ORIGINALS = 64  # good images of a modality that are damaged to learn from, at most
KINDS_PER_IMAGE = 4  # of damage
SAVED_EVERY = 64  # damaged images: what a kill can cost


class Sources:
    """The tables of a campaign as one task of RLHF sees them."""

    def __init__(self, config: Config, task: Task, directory: CampaignDirectory) -> None:
        """Read the tables and hash what belongs to the task: everything depends on it.

        Raises:
            InputProblems: a table has bad rows (`data.strict`) or none.
            InputError: no rating is of the campaign's modalities.
        """
        self.config, self.modality = config, task.modality
        everything, every_pair, table = rated_rows(config), rated_pairs(config), _table_rows(config)
        self.group_of = groups([*everything, *table], ((row.a.file, row.b.file) for row in every_pair))
        judged = judged_groups(config, everything, self.group_of)  # which are another's
        everything = [row for row in everything if self.group_of[row.file] not in judged]
        every_pair = [row for row in every_pair if self.group_of[row.a.file] not in judged]
        table = [row for row in table if self.group_of[row.file] not in judged]
        self.ratings = [row for row in everything if self._belongs(row.modality)]
        self.pairs = [row for row in every_pair if self._belongs(row.modality)]
        self.captioned = [row for row in self._choose(table, CAPTIONED) if self._belongs(row.modality)]
        self.originals = [row for row in self._choose(table, ORIGINALS) if self._belongs(row.modality)]
        # of all modalities in every stage: a member is never trained on what it has not seen before
        self.folds = split_into_folds(
            ((self.group_of[file], modality, good) for file, modality, good in sorted(_judged(everything))),
            config.selector.members,
            config.campaign.seed,
        )
        self.captions = [row.text for row in table if self._belongs(row.modality)]
        learned = config.selector
        self.judges_samples = (
            config.training.stage1.train_selector and learned.artifact_detection and learned.sampled_prompts > 0
        )
        self.prompts = _prompts(everything, every_pair)
        folder = directory.root / "cache" / "ratings"  # shared: stage 2 reuses what stage 1 has made
        disk.sweep_temporaries(folder)
        files = [row.path for row in self.ratings] + [row.path for row in (*self.originals, *self.captioned)]
        files += [side.path for row in self.pairs for side in (row.a, row.b)]
        self._hashes = hash_files(files, folder / f"files-{task.stage}-{task.name}.json")
        self._folder = folder
        self.device = choose_device(config.device).device

    def _belongs(self, modality: str) -> bool:
        return self.modality is None or modality == self.modality

    def _choose(self, rows: Sequence[ImageRow], most: int) -> list[ImageRow]:
        """A sample of the table's images, in the table's order: at most so many of each modality."""
        chosen: list[ImageRow] = []
        for modality in self.config.data.modalities:
            its = {row.file: row for row in rows if row.modality == modality}.values()
            drawn = sorted(its, key=lambda row: (seed("original", self.config.campaign.seed, row.file), row.file))
            chosen += drawn[:most]
        return sorted(chosen, key=lambda row: row.row)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a model that is made from this depends on."""
        config, training = self.config, self.config.training
        return {
            "campaign.seed": config.campaign.seed,
            "data.held_out_fraction": config.data.held_out_fraction,
            "data.ratings_file": self._fingerprint(
                [row.rating, row.expert_level, row.prompt, *self._of(row)] for row in self.ratings
            ),
            "data.pairs_file": self._fingerprint(
                [row.preferred, row.prompt, *self._of(row.a), *self._of(row.b)] for row in self.pairs
            ),
            "data.table": self._fingerprint([row.text, *self._of(row)] for row in self.captioned),
            "prompts": disk.fingerprint(self.prompts),
            "folds": disk.fingerprint([self.folds.count, dict(self.folds.of_group)]),
            "data.resolution": config.data.resolution,
            **({"data.text_chunks": config.data.chunks} if config.data.chunks > 1 else {}),
            "model_paths.stable_diffusion": weights_fingerprint(config.model_paths.stable_diffusion),
            "training.batch_size": training.batch_size,
            "training.max_epochs": training.max_epochs,
            **dict(flatten(config.raters.model_dump(), "raters.")),
            **dict(flatten(_shape(config.selector), "selector.")),
            "selector.artifact_detection": config.selector.artifact_detection,
            **dict(flatten(config.policy_model.model_dump(), "policy_model.")),
            "policy_model.network": NETWORK,
        }

    def _of(self, row: Any) -> list[Any]:
        """What identifies the image of a row, and what it stays together with."""
        return [row.file, row.modality, row.volume, self._hashes[row.path], self.group_of[row.file]]

    def _fingerprint(self, rows: Any) -> str:
        return disk.fingerprint(list(rows))

    def sampling(self, with_own: bool) -> Sampling | None:
        """How the rated images that medsyn made were sampled, and the campaign's own; None if there are none."""
        found = sampling_of(row.path for row in self.ratings)
        if not with_own:
            return found
        section = self.config.generation
        return {
            name: sorted({*(found or {}).get(name, []), getattr(section, name)})
            for name in ("scheduler", "num_inference_steps", "guidance_scale")
        }

    def loading(self, control: Control) -> Loading:
        """Where the images become tensors."""
        source, chunks = self.config.model_paths.stable_diffusion, self.config.data.chunks

        @functools.cache
        def load_system() -> SyntheticSystem:
            from medsyn.models.stable_diffusion import load_synthetic  # 7 s to import, for nothing once all is cached

            return load_synthetic(source, self.device, with_unet=False, text_chunks=chunks)

        remembered = Remembered(self._folder.with_name("numbers"))
        return Loading(self.config, self._hashes, load_system, TensorCache(self._folder), control, remembered)

    @functools.cached_property
    def _rated_poor(self) -> set[Path]:
        """Images that an expert called poor: no examples of good ones, whatever table has them."""
        return {row.path for row in self.ratings if row.rating < GOOD}

    def sampled(
        self, loading: Loading, generator: Path | None, sample: Callable[..., Comparisons]
    ) -> list[Comparisons]:
        """The modality's generator against itself: the same prompts sampled as the campaign does, and badly.

        Args:
            loading: where to.
            generator: folder of the fine-tuned `unet/`.
            sample: `sampled_comparisons`.
        """
        config, source = self.config, self.config.model_paths.stable_diffusion
        if generator is None:
            return []

        @functools.cache
        def load_system() -> SyntheticSystem:
            from medsyn.models.stable_diffusion import load_synthetic

            chosen = choose_device(config.device)
            return load_synthetic(source, chosen.device, chosen.dtype, generator, text_chunks=config.data.chunks)

        texts = self.captions or list(dict.fromkeys(row.prompt for row in self.ratings))
        weights = model_fingerprint(source, unet_sha256(generator), generator)
        count, cache = config.selector.sampled_prompts, loading.cache
        return [sample(config, self.modality, texts, count, weights, load_system, cache, loading.control)]

    def load(self, loading: Loading) -> tuple[RatedSet, RatedPairs]:
        """The ratings and pairs as tensors; errors as for `encode_rows`."""
        return load_rated(loading, self.ratings, self.pairs, self.prompts, self.group_of)

    def with_captions(self, loading: Loading) -> tuple[Captioned, Texts]:
        """The table's captioned images, and all texts, the ratings' prompts first; errors as for `encode_rows`."""
        table, allowed = self.config.data.table, self.config.data.allow_synthetic
        rows = [row for row in self.captioned if row.path not in self._rated_poor]
        kept = loading.pictures(table, rows, "original", allow_synthetic=allowed) if rows else []
        tables = self.prompts | {row.text: row.modality for _, row in kept if row.text not in self.prompts}
        place = {text: number for number, text in enumerate(tables)}
        captioned = Captioned(
            loading.pixels(key for key, _ in kept),
            np.array([row.row for _, row in kept], dtype=np.int64),
            np.array([self.group_of[row.file] for _, row in kept], dtype=str),
            np.array([place[row.text] for _, row in kept], dtype=np.int64),
        )
        return captioned, collect_texts(tables, loading.texts)

    def degraded(self, loading: Loading, damage: Callable[..., Comparisons]) -> list[Comparisons]:
        """Good images against damaged copies of themselves: rated good ones, and some of the table's.

        Args:
            loading: where to.
            damage: `degraded_comparisons`.
        """
        if not self.config.selector.artifact_detection:
            return []
        table = self.config.data.table
        allowed = self.config.data.allow_synthetic
        own = loading.pictures(table, self.originals, "original", allow_synthetic=allowed) if self.originals else []
        best = [row for row in self.ratings if row.rating >= GOOD]
        rated = loading.pictures(str(self.config.data.ratings_file), best, "rated") if best else []
        found: dict[str, RatingRow | ImageRow] = {**dict(rated), **dict(own)}
        good = {key: row for key, row in found.items() if row.path not in self._rated_poor}
        keys = _spread(good, self.config.campaign.seed)
        made = []
        for number, key in enumerate(keys, 1):  # one by one: a stop is obeyed in between
            row = good[key]
            its = np.array([row.modality]), np.array([self.group_of[row.file]]), [key]
            pixels, drawn = loading.pixels([key]), (self.config.campaign.seed, KINDS_PER_IMAGE)
            made.append(damage(pixels, *its, *drawn, remembered=loading.remembered))
            if number % SAVED_EVERY == 0 or number == len(keys) or loading.control.stop_requested:
                loading.remembered.save()
            loading.control.heartbeat(number, len(keys), "damaged image")
            loading.control.leave_if_asked()
        return made


def _spread(good: Mapping[str, RatingRow | ImageRow], campaign_seed: int) -> list[str]:
    """The keys of at most ORIGINALS images of each modality, by lot, in their own order."""
    taken: list[str] = []
    for modality in dict.fromkeys(row.modality for row in good.values()):
        its = [key for key, row in good.items() if row.modality == modality]
        taken += sorted(its, key=lambda key: seed("original", campaign_seed, key))[:ORIGINALS]
    return [key for key in good if key in set(taken)]


def _table_rows(config: Config) -> list[ImageRow]:
    """The rows of the data set that are trained on, of the campaign's modalities."""
    if config.data.table == PHANTOMS:  # in a prepared campaign it is the table that was drawn
        return []
    everything = dataset_of(config.data).require(config.data.strict)
    is_held_out = hold_out(everything, config.data.held_out_fraction, config.campaign.seed)
    return [row for row in everything if row.modality in config.data.modalities and not is_held_out(row)]


def _judged(rows: Sequence[RatingRow]) -> set[tuple[str, str, bool]]:
    return {(row.file, row.modality, row.rating >= GOOD) for row in rows}


def _prompts(rows: Sequence[RatingRow], pairs: Sequence[PairRow]) -> dict[str, str]:
    return {row.prompt: row.modality for row in rows} | {row.prompt: row.modality for row in pairs}


def _shape(section: ScorerSection) -> dict[str, Any]:
    return section.model_dump(include=set(ScorerSection.model_fields))
