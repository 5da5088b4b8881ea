"""One block in the making: the candidates of its items as they come, from any batch, until it can be published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from medsyn import disk
from medsyn.config import Config
from medsyn.generation.block_store import BlockContent, Item, commit_block, commit_rejected, item_fingerprint
from medsyn.generation.filter import FAILED, SURPLUS, Candidate, Rule, Trial
from medsyn.generation.make.journal import Journal, Places
from medsyn.generation.sample.batch import Batch, Recipe
from medsyn.generation.write.dicom import add_dicom
from medsyn.generation.write.png import publish, publish_rejected
from medsyn.generation.write.provenance import ENVIRONMENT_FILE, require_same_environment, settings
from medsyn.generation.write.webdataset import pack
from medsyn.records import ImageRecord
from medsyn.stage import CampaignDirectory

Published: TypeAlias = tuple[ImageRecord, bytes | None, bytes | None]  # an item's record, its PNG and its DICOM file


@dataclass(frozen=True)
class Order:
    """One block to make."""

    path: Path
    items: Sequence[Item]
    rule: Rule
    facts: Mapping[str, Any]  # recorded with every image: modality, mode, fingerprints, environment
    settings: Mapping[str, Any]  # steps, guidance, …: recorded with the images of items that do not override them
    archive: bool = False  # images in one tar file instead of one file each
    dicom: bool = False  # also a DICOM file of every image
    made_with: Path | None = None  # the record of the environment that the campaign's images are made in
    keep_rejected: int = 0  # candidates of each item besides its image, in a folder of their own

    @classmethod
    def of(
        cls, config: Config, directory: CampaignDirectory, place: Path, items: Sequence[Item], facts: Mapping[str, Any]
    ) -> Order:
        """A block of a campaign: where it goes, and what it must hold."""
        section = config.generation
        return cls(
            place,
            items,
            Rule.of(section, facts["mode"], facts.get("quality_threshold")),
            facts,
            settings(section),
            archive=section.output == "webdataset",
            dicom=section.dicom,
            made_with=directory.work("generate", ENVIRONMENT_FILE),
            keep_rejected=section.keep_rejected,
        )

    @property
    def identity(self) -> str:
        """Fingerprint of all that the block's batches depend on."""
        items = [item_fingerprint(item) for item in self.items]
        return disk.fingerprint([items, asdict(self.rule), dict(self.facts)])


@dataclass(eq=False)
class Progress:
    """A block in progress: the trials of its items, the pictures that may become images, and what is settled.

    The sampling thread calls `take`; what the writing thread touches (settled trials, their pictures) it never
    touches again.
    """

    order: Order
    trials: list[Trial]
    favourites: dict[int, np.ndarray] = field(default_factory=dict)
    devices: dict[int, str] = field(default_factory=dict)  # what sampled the favourites
    others: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)  # by attempt: they may be kept if rejected
    published: dict[int, Published] = field(default_factory=dict)
    rejected: dict[int, list[tuple[ImageRecord, bytes]]] = field(default_factory=dict)
    found: int = 0  # items that the journal settled
    seconds: float = 0.0  # the block's share of the batches that have candidates of it
    batches: float = 0.0
    unet_evaluations: int = 0
    _waiting: dict[tuple[int, int], tuple[Candidate, np.ndarray, str]] = field(default_factory=dict)

    @classmethod
    def begin(cls, order: Order, recipe: Recipe) -> Progress:
        """A block of which nothing has been sampled."""
        return cls(order, [Trial(order.rule, recipe.kind(item)) for item in order.items])

    def resume(self, kept: Iterable[tuple[Places, Batch]]) -> list[int]:
        """Take what the journal has into account; return the positions of the items that it settled."""
        settled = [position for places, batch in kept for position in self.take(places, batch)]
        self.found = len(settled)
        return settled

    @property
    def settled(self) -> bool:
        """Whether every item is settled."""
        return all(trial.settled for trial in self.trials)

    @property
    def settled_count(self) -> int:
        """How many items are settled."""
        return sum(trial.settled for trial in self.trials)

    @property
    def accepted_count(self) -> int:
        """How many of them have an accepted image."""
        return sum(trial.settled and trial.passed > 0 for trial in self.trials)

    @property
    def failed(self) -> list[str]:
        """The ids of the prompts that failed, once all items are settled."""
        outcomes = zip(self.order.items, self.trials, strict=True)
        return list(dict.fromkeys(item.prompt_id for item, trial in outcomes if trial.reason == FAILED))

    def take(self, places: Places, batch: Batch) -> list[int]:
        """Take a batch, or the block's part of one, into account; return the positions of the items that it settled."""
        for place, candidate, picture in zip(places, batch.candidates, batch.pictures, strict=True):
            self._waiting[place] = candidate, picture, batch.device
        self.seconds += batch.seconds
        self.batches += batch.share
        self.unet_evaluations += batch.unet_evaluations
        positions = dict.fromkeys(position for position, _ in places if not self.trials[position].settled)
        for position, _ in places:
            self._judge(position)
        return [position for position in positions if self.trials[position].settled]

    def _judge(self, position: int) -> None:
        """Hand the item's trial what comes next; what comes later waits, as a damaged journal may lack a part."""
        trial = self.trials[position]
        while (place := (position, len(trial.candidates))) in self._waiting:
            candidate, picture, device = self._waiting.pop(place)
            trial.add(candidate)
            if trial.favourite is candidate:
                self.favourites[position], self.devices[position] = picture, device
            self._keep(position, candidate, picture)

    def _keep(self, position: int, candidate: Candidate, picture: np.ndarray) -> None:
        """Keep the picture if it may be one of the rejected ones: the first, and one more, as one of them may win."""
        others, most = self.others.setdefault(position, {}), self.order.keep_rejected
        examined = candidate.attempt < self.trials[position].considered
        if most and len(others) <= most and candidate.finite and examined:
            others[candidate.attempt] = picture

    def publish(self, settled: Sequence[int]) -> None:
        """Make the records and the image files of settled items; their pictures are no longer needed."""
        for position in settled:
            picture = self.favourites.pop(position, None)
            item, trial = self.order.items[position], self.trials[position]
            record, png = publish(item, trial, picture, self.order.facts, self.order.settings)
            dicom = None
            if self.order.dicom and png is not None and picture is not None:
                record, dicom = add_dicom(record, picture)
            self.published[position] = record, png, dicom
            self.rejected[position] = self._reject(position)

    def _reject(self, position: int) -> list[tuple[ImageRecord, bytes]]:
        """Make the records and the image files of the rejected candidates of a settled item that are to be kept."""
        item, trial, order = self.order.items[position], self.trials[position], self.order
        pictures = self.others.pop(position, {})
        return [
            publish_rejected(item, trial, candidate, pictures[candidate.attempt], order.facts, order.settings)
            for candidate in trial.rejected(order.keep_rejected)
        ]

    def rejected_content(self) -> tuple[dict[str, bytes], list[ImageRecord]]:
        """The files and the records of the rejected candidates of all items, once every item is published."""
        kept = [one for position in range(len(self.order.items)) for one in self.rejected[position]]
        manifest, files = [record for record, _ in kept], {str(record["file"]): image for record, image in kept}
        if self.order.archive and manifest:
            manifest, files = pack(manifest, files)
        return files, manifest

    def content(self, device: str) -> BlockContent:
        """Everything the block's directory holds, once every item is published.

        What is surplus depends on how batches were packed, so it is told with the timing.
        """
        manifest = [self.published[position][0] for position in range(len(self.order.items))]
        files: dict[str, bytes] = {}
        for record, png, dicom in self.published.values():
            if record["file"] is not None and png is not None:
                files[record["file"]] = png
            if dicom is not None:
                files[record["dicom"]] = dicom
        if self.order.archive:
            manifest, files = pack(manifest, files)
        candidates = [
            {"id": item.prompt_id, "replicate": item.replicate, **record}
            for item, trial in zip(self.order.items, self.trials, strict=True)
            for record in trial.records()
        ]
        attempts = [record for record in candidates if record["reason"] != SURPLUS]
        surplus = [record for record in candidates if record["reason"] == SURPLUS]
        return BlockContent(files, manifest, attempts, {**self._timing(device), "surplus": surplus})

    def _timing(self, device: str) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "device": device,
            "devices": [
                None if trial.winner is None else self.devices[position] for position, trial in enumerate(self.trials)
            ],
            "batches": self.batches,
            "unet_evaluations": self.unet_evaluations,
        }

    def commit(self, device: str, journal: Journal) -> None:
        """Put the block on disk and remove its journal, once every item is published."""
        if self.order.made_with is not None:
            require_same_environment(self.order.made_with, self.order.facts, keep=True)
        if self.order.keep_rejected:
            commit_rejected(self.order.path, *self.rejected_content())
        commit_block(self.order.path, self.content(device))
        journal.remove()
