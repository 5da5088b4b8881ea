"""A block from its first batch to its commit: sample until every item is settled, journal the batches, publish.

Batches are packed over the whole block, retries with first attempts, so that few places are padding. The packing
follows from the outcomes alone; a resumed block packs the same batches and takes those that its journal has.

Blocks are made one after another, of one modality and in any mode; an existing block is left alone.

With work stealing a block is touched only under its lease (`medsyn.lease`). A lease that fails costs time but no
image: what a block holds does not depend on which task makes it, and one rename commits it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from medsyn import disk
from medsyn.config import Config
from medsyn.generation.block_store import (
    BlockContent,
    Blocks,
    Item,
    commit_block,
    finished_block,
    item_fingerprint,
    read_manifest,
)
from medsyn.generation.filter import FAILED, Rule, Trial, next_batch
from medsyn.generation.make.journal import Journal, Places, journal_directory
from medsyn.generation.make.writer_thread import Writer
from medsyn.generation.sample.batch import Batch, ImageSampler
from medsyn.generation.sample.load import Loader
from medsyn.generation.write.dicom import add_dicom
from medsyn.generation.write.png import publish
from medsyn.generation.write.provenance import ENVIRONMENT_FILE, require_same_environment, settings
from medsyn.generation.write.webdataset import pack
from medsyn.lease import LeaseLost, Leases, lease_file
from medsyn.records import ImageRecord
from medsyn.stage import CampaignDirectory

Published = tuple[ImageRecord, bytes | None, bytes | None]  # an item's record, its PNG file and its DICOM file

Place = tuple[str, int]  # a block: mode and number


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

    @classmethod
    def of(
        cls, config: Config, directory: CampaignDirectory, place: Path, items: Sequence[Item], facts: Mapping[str, Any]
    ) -> Order:
        """A block of a campaign: where it goes, and what it must hold."""
        section = config.generation
        return cls(
            place,
            items,
            Rule.of(section, facts["mode"]),
            facts,
            settings(section),
            archive=section.output == "webdataset",
            dicom=section.dicom,
            made_with=directory.work("generate", ENVIRONMENT_FILE),
        )

    @property
    def identity(self) -> str:
        """Fingerprint of all that the block's batches depend on."""
        items = [item_fingerprint(item) for item in self.items]
        return disk.fingerprint([items, asdict(self.rule), dict(self.facts)])


@dataclass
class Progress:
    """A block in progress: the trials of its items, the pictures that may become images, and what is settled.

    The sampling thread calls `take`; what the writing thread touches (settled trials, their pictures) it never
    touches again.
    """

    order: Order
    trials: list[Trial]
    favourites: dict[int, np.ndarray] = field(default_factory=dict)
    devices: dict[int, str] = field(default_factory=dict)  # what sampled the favourites
    published: dict[int, Published] = field(default_factory=dict)

    @property
    def settled_count(self) -> int:
        """How many items are settled."""
        return sum(trial.settled for trial in self.trials)

    @property
    def accepted_count(self) -> int:
        """How many of them have an accepted image."""
        return sum(trial.settled and trial.passed > 0 for trial in self.trials)

    def take(self, places: Places, batch: Batch) -> list[int]:
        """Take a batch into account; return the positions of the items that it settled."""
        before = [trial.settled for trial in self.trials]
        for (position, _), candidate, picture in zip(places, batch.candidates, batch.pictures, strict=True):
            trial = self.trials[position]
            trial.add(candidate)
            if trial.favourite is candidate:
                self.favourites[position], self.devices[position] = picture, batch.device
        return [i for i, (trial, was) in enumerate(zip(self.trials, before, strict=True)) if trial.settled and not was]

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

    def content(self, timing: Mapping[str, Any]) -> BlockContent:
        """Everything the block's directory holds, once every item is published."""
        manifest = [self.published[position][0] for position in range(len(self.order.items))]
        files: dict[str, bytes] = {}
        for record, png, dicom in self.published.values():
            if record["file"] is not None and png is not None:
                files[record["file"]] = png
            if dicom is not None:
                files[record["dicom"]] = dicom
        if self.order.archive:
            manifest, files = pack(manifest, files)
        attempts = [
            {"id": item.prompt_id, "replicate": item.replicate, **record}
            for item, trial in zip(self.order.items, self.trials, strict=True)
            for record in trial.records()
        ]
        return BlockContent(files, manifest, attempts, timing)


Tell: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a block's items."""

    failed: list[str]  # ids of prompts
    accepted: int  # images


def make_block(
    order: Order,
    sampler: ImageSampler,
    writer: Writer,
    tell: Tell,
    committed: Callable[[], None] = lambda: None,
) -> Outcome:
    """Sample a block and hand it to `writer`, which commits it; return what became of its items.

    Args:
        order: what to make.
        sampler: what samples it.
        writer: encodes and writes during sampling. The block is committed when its last job has ended.
        tell: called before each batch with the number of settled and of accepted items; may raise to stop. What has
            been sampled is in the journal by the time `writer` is closed.
        committed: called on the writing thread when the block is on disk and its journal is gone.
    """
    journal = Journal(order.path, order.identity)
    progress = Progress(order, [Trial(order.rule) for _ in order.items])
    kinds = [sampler.recipe.kind(item) for item in order.items]
    batches: list[Batch] = []

    def write(number: int, places: Places, batch: Batch, settled: Sequence[int], is_new: bool) -> None:
        if is_new:
            journal.append(number, places, batch)
        progress.publish(settled)

    while places := next_batch(progress.trials, sampler.recipe.batch_size, kinds):
        kept = journal.batch(len(batches), places)
        if kept is None:
            tell(progress.settled_count, progress.accepted_count)
        batch = kept or replace(
            sampler.sample([(order.items[position], attempt) for position, attempt in places]),
            device=sampler.device_name,
        )
        settled = progress.take(places, batch)
        writer.submit(partial(write, len(batches), places, batch, settled, kept is None))
        batches.append(replace(batch, pictures=[]))
    timing = {
        "seconds": sum(batch.seconds for batch in batches),
        "device": sampler.device_name,
        "devices": [
            None if trial.winner is None else progress.devices[position]
            for position, trial in enumerate(progress.trials)
        ],
        "batches": len(batches),
        "unet_evaluations": sum(batch.unet_evaluations for batch in batches),
    }

    def commit() -> None:
        if order.made_with is not None:
            require_same_environment(order.made_with, order.facts, keep=True)
        commit_block(order.path, progress.content(timing))
        journal.remove()
        committed()

    writer.submit(commit)
    outcomes = zip(order.items, progress.trials, strict=True)
    failed = dict.fromkeys(item.prompt_id for item, trial in outcomes if trial.reason == FAILED)
    return Outcome(list(failed), progress.accepted_count)


@dataclass
class BlockMaker:
    """The models and the blocks of one modality; only one mode's models are loaded at a time."""

    config: Config
    loader: Loader
    blocks: Blocks
    facts: Mapping[str, Mapping[str, Any]]  # by mode: what is recorded about every image
    leases: Leases | None = None  # None: no other task makes these blocks
    _loaded: dict[str, ImageSampler] = field(default_factory=dict)

    def block(self, place: Place) -> Path:
        """Where a block is."""
        return self.loader.directory.block(place[0], self.loader.modality, place[1])

    @property
    def modes(self) -> list[str]:
        """All modes, first the one whose models are loaded."""
        return sorted(self.facts, key=lambda mode: mode not in self._loaded)

    def settle(self, place: Place, writer: Writer, tell: Tell) -> Outcome | None:
        """Make a block unless it exists; return what became of its items.

        Args:
            place: which block.
            writer: writes it; the block is on disk when the writer is closed.
            tell: as for `make_block`.

        Returns:
            None if the block is left to the task that holds its lease.
        """
        block = self.block(place)
        if self.leases is not None and not is_settled(block):
            if not self.leases.take(block):
                return None
            sweep([block])
        items, facts = self.blocks.items(place[1]), self.facts[place[0]]
        manifest = finished_block(block, items, facts)
        if manifest is not None:
            self._give_back(block)
            failed = [record["id"] for record in manifest if record["reason"] == FAILED]
            return Outcome(failed, sum(record["accepted"] for record in manifest))
        order = Order.of(self.config, self.loader.directory, block, items, facts)

        def before_batch(settled: int, accepted: int) -> None:
            if self.leases is not None:
                self.leases.require(block)
            tell(settled, accepted)

        try:
            return make_block(order, self._sampler(place[0]), writer, before_batch, lambda: self._give_back(block))
        except LeaseLost:
            return None

    def _give_back(self, block: Path) -> None:
        if self.leases is not None:
            self.leases.give_back(block)

    def _sampler(self, mode: str) -> ImageSampler:
        if mode not in self._loaded:
            self._loaded.clear()  # before the others are loaded: a GPU has room for one mode's
            self._loaded[mode] = self.loader.sampler(mode)
        return self._loaded[mode]


def is_settled(block: Path) -> bool:
    """Whether the block is whole and nothing that its makers need is left beside it."""
    return not (lease_file(block).exists() or journal_directory(block).exists()) and read_manifest(block) is not None


def sweep(blocks: Sequence[Path]) -> None:
    """Remove what killed processes left of these blocks, and the journals of committed ones."""
    for part in dict.fromkeys(block.parent for block in blocks):
        names = {path.name for path in part.iterdir()} if part.is_dir() else set()
        left = {name.partition(".tmp-")[0] for name in names if ".tmp-" in name}
        for block in blocks:
            if block.parent != part:
                continue
            for name in (block.name, lease_file(block).name.removeprefix(".")):
                if f".{name}" in left:
                    disk.sweep_temporaries(part, of=name)
            if journal_directory(block).name in names and block.name in names:
                disk.remove(journal_directory(block))
