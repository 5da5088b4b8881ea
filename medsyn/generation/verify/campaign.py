"""Check that the files on disk are what was requested and what the records say. Every finding is one line.

Blocks are checked one after another, tables shard by shard; nothing else is kept. No torch here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medsyn.arms import filters
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.generation.block_store import REJECTED, Blocks, parse_manifest
from medsyn.generation.filter import Rule
from medsyn.generation.verify.block import Asked, Content, check_block, read_block
from medsyn.generation.verify.files import IN_USE
from medsyn.generation.verify.finding import Finding, unread
from medsyn.generation.verify.parquet import TABLES, check_shard_tables
from medsyn.generation.write import provenance
from medsyn.generation.write.parquet import Place, Rows, block_rows
from medsyn.models import weights
from medsyn.records import ENVIRONMENT
from medsyn.stage import CampaignDirectory, slug
from medsyn.text import counted

# what running tasks and the file system keep beside blocks: temporaries, journals, leases, files in use over NFS
_PASSING = re.compile(rf"\..+\.tmp-.+|\.block-\d{{6}}\.(journal|lease)|{IN_USE}")
_Range = tuple[int, int]  # of block numbers, half open
_Made = tuple[tuple[str, Any], ...]  # by which models and in which environment a block was made


@dataclass
class Images:
    """The images of one mode and modality, and what they should be."""

    config: Config
    directory: CampaignDirectory
    mode: str
    modality: str
    blocks: Blocks
    to_make: int = 0  # images of blocks that tasks are still to make, once `findings` has looked
    _made: dict[_Made, list[int]] = field(default_factory=dict)  # numbers of the blocks made so

    def block(self, number: int) -> Path:
        """Where a block is."""
        return self.directory.block(self.mode, self.modality, number)

    @property
    def folder(self) -> Path:
        """The directory of all its blocks."""
        return self.directory.work("generate", self.mode) / slug(self.modality)

    def findings(self, shards: Sequence[_Range], unfinished: Collection[_Range] = ()) -> Iterator[Finding]:
        """Everything wrong: gaps, duplicates, unexpected files, and each file, record or attempt not as it should be.

        Args:
            shards: the block ranges of the modality's tables.
            unfinished: those whose tasks are not done: what is there is checked, what is not is `to_make`.
        """
        self._made.clear()
        self.to_make = 0
        for numbers in shards:
            yield from self._check_shard(numbers, numbers in unfinished)
        yield from self._mixed()
        yield from self._strangers(shards)

    def _check_shard(self, numbers: _Range, is_unfinished: bool) -> Iterator[Finding]:
        rows: Rows | None = ([], [])
        for number in range(*numbers):
            found: list[Finding] = []
            if is_unfinished and not os.path.lexists(self.block(number)):
                self.to_make += len(self.blocks.items(number))
                rows = None
                continue
            content = self._check(number, found)
            yield from found
            if content is None or len(content.records) != len(content.timing["devices"]):
                rows = None
            elif rows is not None:
                place = Place(self.directory, self.mode, self.modality, number)
                made, tried = block_rows(place, content.records, content.attempts, content.timing)
                rows[0].extend(made)
                rows[1].extend(tried)
        yield from check_shard_tables(self.directory.shard(self.mode, self.modality, numbers), rows, is_unfinished)

    def _check(self, number: int, found: list[Finding]) -> Content | None:
        block, asked = self.block(number), self._asked(number)
        if not block.is_dir():
            is_there = block.exists() or block.is_symlink()
            what = "is not a directory" if is_there else f"is missing, with {counted(len(asked.items), 'image')}"
            found.append(Finding(block, what, block))
            return None
        try:
            content = read_block(block, asked, found)
            if content is not None:
                found += check_block(block, asked, content)
                made = tuple((key, repr(content.records[0].get(key))) for key in asked.shared)
                self._made.setdefault(made, []).append(number)
            return content
        except OSError as error:
            found.append(Finding(block, unread(error), block))
        except Exception as error:  # whatever form damage takes, it is a finding
            found.append(Finding(block, f"is damaged ({type(error).__name__}: {str(error)[:100]})", block))
        return None

    def _asked(self, number: int) -> Asked:
        section = self.config.generation
        return Asked(
            items=self.blocks.items(number),
            rule=Rule.of(section, self.mode, self._threshold),
            campaign_seed=self.config.campaign.seed,
            facts=self._facts,
            shared=self._shared,
            settings=provenance.settings(section),
            archive=section.output == "webdataset",
            dicom=section.dicom,
        )

    @cached_property
    def _facts(self) -> dict[str, Any]:
        found = provenance.common(self.config, self.modality, self.mode, "")
        return {key: value for key, value in found.items() if key != "model_fingerprint"}

    @cached_property
    def _threshold(self) -> float | None:
        """The Selector score that was needed: what its folder says, or where that is gone, what a block does."""
        if not filters(self.mode):
            return None
        with suppress(InputError):
            selector, _ = provenance.Sources(self.config, self.modality, self.directory).scorers()
            return provenance.quality_threshold(self.config, selector.parent, self.modality)
        said = (record.get("quality_threshold") for record in self._records())
        return next((float(one) for one in said if isinstance(one, (int, float))), 1.0)

    def _records(self) -> Iterator[dict[str, Any]]:
        """The first record of every block that can be read."""
        for number in range(self.blocks.count):
            yield from (parse_manifest(self.block(number)) or [])[:1]

    @cached_property
    def _shared(self) -> tuple[str, ...]:
        scorers = ("scorers_fingerprint", "quality_threshold") if filters(self.mode) else ()
        return ("model_fingerprint", *ENVIRONMENT, *scorers)

    def environments(self) -> set[tuple[str, ...]]:
        """The values of `ENVIRONMENT` that its blocks were made with, once `findings` has read them."""
        return {tuple(dict(made)[key] for key in ENVIRONMENT) for made in self._made}

    def _mixed(self) -> Iterator[Finding]:
        """Blocks whose models or environment differ from most others or from the record."""
        expected = self._expected()
        agreeing = {made: numbers for made, numbers in self._made.items() if _agrees(dict(made), expected)}
        kept = max(agreeing or self._made, key=lambda made: len(self._made[made]), default=())
        for made, numbers in self._made.items():
            differing = [key for (key, value), (_, ours) in zip(made, kept, strict=True) if value != ours]
            for number in numbers if differing else ():
                what = f"was made with a different {', '.join(differing)} from the other blocks"
                yield Finding(self.block(number), what, self.block(number))
        if self._made and not agreeing:
            said = dict(kept)
            differing = [key for key, value in expected.items() if said[key] != repr(value)]
            yield Finding(self.folder, f"was made with a different {', '.join(differing)} from what is there now")

    def _expected(self) -> dict[str, Any]:
        """What the images should have been made with, as far as it exists and can be read.

        A record of the environment that no block agrees with is left to `check_environment`.
        """
        expected: dict[str, Any] = {}
        try:
            if weights.locate(self.config.model_paths.stable_diffusion) is not None:
                sources = provenance.Sources(self.config, self.modality, self.directory, trusts_markers=False)
                found = sources.facts(self.mode)
                expected = {key: found[key] for key in self._shared if key in found}
            path = self.directory.work("generate", provenance.ENVIRONMENT_FILE)
            recorded = provenance.read_environment(path) or {}
            if any(_agrees(dict(made), recorded) for made in self._made):
                expected |= recorded
        except (InputError, OSError, ValueError):  # reported elsewhere, or no trained models: nothing to compare
            pass
        return expected

    def _strangers(self, shards: Sequence[_Range]) -> Iterator[Finding]:
        parts: dict[Path, set[str]] = {}
        for number in range(self.blocks.count):
            parts.setdefault(self.block(number).parent, set()).add(self.block(number).name)
        folder = self.directory.shard(self.mode, self.modality, (0, 0)).parent
        kept = {REJECTED} if self.config.generation.keep_rejected else set()
        yield from others(self.folder, {part.name for part in parts} | {folder.name} | kept)
        for part, blocks in parts.items():
            yield from others(part, blocks)
        tables = [self.directory.shard(self.mode, self.modality, numbers) for numbers in shards]
        yield from others(folder, {table.name for table in tables})
        for table in tables:
            yield from others(table, set(TABLES))


def _agrees(made: Mapping[str, str], expected: Mapping[str, Any]) -> bool:
    return all(made[key] == repr(value) for key, value in expected.items())


def others(folder: Path, expected: Collection[str]) -> Iterator[Finding]:
    """What is in a directory and is neither expected nor a running task's."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in expected and not _PASSING.fullmatch(path.name):
            yield Finding(path, "is not part of this campaign", path)


def strangers(config: Config, directory: CampaignDirectory, modalities: Sequence[str]) -> Iterator[Finding]:
    """Modes and modalities that this campaign does not have, and stray files beside them."""
    root = directory.work("generate", "any").parent
    modes = config.generation.modes
    yield from others(root, {*modes, provenance.ENVIRONMENT_FILE})
    for mode in modes:
        yield from others(root / mode, {slug(modality) for modality in modalities})


def check_environment(directory: CampaignDirectory, images: Sequence[Images]) -> Iterator[Finding]:
    """Check that the environment of the campaign's images is recorded, if there are any, and that they agree with it.

    Where all blocks agree with one another but not with the record, it is the record that is wrong.

    Args:
        directory: the campaign's.
        images: all of them, once their own findings have been reported.
    """
    path = directory.work("generate", provenance.ENVIRONMENT_FILE)
    try:
        recorded = provenance.read_environment(path)
        if recorded is not None:
            yield from _outvoted(path, recorded, images)
        elif any(path.parent.glob("*/*/part-*/block-*")):
            yield Finding(path, "is missing; `--repair` rewrites it", path)
    except OSError as error:
        yield Finding(path, unread(error), path)
    except ValueError:
        yield Finding(path, "is damaged; `--repair` rewrites it", path)


def _outvoted(path: Path, recorded: Mapping[str, Any], images: Sequence[Images]) -> Iterator[Finding]:
    ours = tuple(repr(recorded[key]) for key in ENVIRONMENT)
    said = [(one, one.environments()) for one in images]
    every = {values for _, its in said for values in its}
    if len(every) == 1 and ours not in every:
        differing = _differing(ours, *every)
        yield Finding(path, f"has a different {differing} from all blocks; `--repair` rewrites it", path)
        return
    for one, its in said:
        if its and ours not in its:
            differing = _differing(ours, min(its))
            yield Finding(one.folder, f"was made with a different {differing} from that recorded in {path.name}")


def _differing(ours: Sequence[str], theirs: Sequence[str]) -> str:
    return ", ".join(key for key, a, b in zip(ENVIRONMENT, ours, theirs, strict=True) if a != b)
