"""Where images to rate come from: a campaign, a folder of images, or a table.

Nothing is decoded here. A campaign's records are streamed: of a million images only the chosen ones are remembered.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images.own_record import own_record
from medsyn.data.prompts.store import open_lists
from medsyn.data.tables.csv_rows import check_text_file, csv_records, require_csv
from medsyn.data.tables.data_folder import IMAGE_SUFFIXES, DataFolder, Refused
from medsyn.data.tables.read import ImageRow, read_dataset
from medsyn.data.tables.row_errors import Faults, show
from medsyn.data.tables.text_checks import check_modality, check_text
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.generation.block_store import (
    MANIFEST,
    read_blocks,
    read_manifest,
    read_rejected,
    rejected_directory,
    stored_files,
)
from medsyn.modality_names import MODALITIES, base_modality, canonical_modality
from medsyn.rating.formats import Origin
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory
from medsyn.text import and_more, counted

_NAMED = 3  # files of a message


@dataclass(frozen=True)
class Source:
    """One image file, and what is known of it."""

    file: Path  # absolute: of the image, or of the archive that has it
    modality: str
    prompt: str
    is_generated: bool | None = None  # None: its own mark decides
    volume: int | None = None
    member: str | None = None  # its name in the archive
    offset: int = 0  # in the archive
    size: int | None = None  # in the archive
    sha256: str | None = None  # as recorded when it was generated
    facts: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)  # of its record in the manifest

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"{self.file}, {self.member}" if self.member else str(self.file)

    @property
    def stratum(self) -> tuple[Any, ...]:
        """Images of all kinds are taken alike: modality, mode, accepted or not."""
        return self.modality, self.facts.get("mode"), self.facts.get("accepted")

    def content(self) -> bytes:
        """The bytes of its file.

        Raises:
            InputError: it cannot be read, or is not what was generated.
        """
        try:
            with disk.open_file(self.file) as stream:
                stream.seek(self.offset)
                content = stream.read() if self.size is None else stream.read(self.size)
        except OSError as error:
            raise InputError(self.place, f"cannot be read: {error.strerror}") from None
        if self.sha256 is not None and hashlib.sha256(content).hexdigest() != self.sha256:
            reason = "has changed since it was generated; `medsyn verify CAMPAIGN_DIR --repair` makes it again"
            raise InputError(self.place, reason)
        return content

    def origin(self, is_marked: bool) -> Origin:
        """What the key says of it; `is_marked`: its file says that it was generated."""
        is_generated = is_marked if self.is_generated is None else self.is_generated
        return Origin(
            kind="generated" if is_generated else "real",
            file=str(self.file),
            member=self.member,
            volume=self.volume,
            sha256=self.sha256 or hashlib.sha256(self.content()).hexdigest(),
            modality=self.modality,
            prompt=self.prompt,
            prompt_id=self.facts.get("id"),
            **{name: self.facts.get(name) for name in _FACTS},
        )

    def rank(self, of: int, what: str) -> int:
        """A number by which images are drawn: which of them does not depend on where they are, or how many."""
        name = self.facts.get("id") or "/".join(self.file.parts[-3:])
        of_it = self.facts.get("replicate") or 0, self.facts.get("mode") or "", self.volume or 0
        attempt = [] if self.facts.get("accepted") is not False else [self.facts.get("attempt") or 0]
        return seed(of, what, name, *of_it, self.modality, self.prompt, *attempt)


_FACTS = ("accepted", "mode", "replicate", "attempt", "selector", "policy")


def draw(sources: Iterable[Source], most: int, of: int, what: str = "rate") -> list[Source]:
    """At most `most` of the sources, as evenly from all strata as these allow; independent of their order.

    Args:
        sources: may be a stream; `most` of each stratum are remembered.
        most: how many are wanted.
        of: the seed.
        what: it is for, so that two draws of one seed differ.
    """
    kept: dict[tuple[Any, ...], list[tuple[int, int, Source]]] = {}
    for number, source in enumerate(sources):
        heap = kept.setdefault(source.stratum, [])
        entry = -source.rank(of, what), -number, source
        if len(heap) < most:
            heapq.heappush(heap, entry)
        elif entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)
    queues = [
        sorted(heap, key=lambda entry: entry[:2]) for _, heap in sorted(kept.items(), key=lambda one: str(one[0]))
    ]
    drawn: list[Source] = []
    while len(drawn) < most and any(queues):
        for queue in queues:
            if queue and len(drawn) < most:
                drawn.append(queue.pop()[2])
    return drawn


# --- a campaign -----------------------------------------------------------------------------------------------------


def of_campaign(config: Config, directory: CampaignDirectory) -> Iterator[Source]:
    """Every image that a campaign has made so far, accepted or not: the best of those, and rejected ones that it keeps.

    Raises:
        InputError: a block is damaged.
    """
    for modality in open_lists(Path(str(config.data.prompts))):
        blocks = read_blocks(config, modality)
        for mode in config.generation.modes:
            for number in range(blocks.count):
                block = directory.block(mode, modality, number)
                if (manifest := read_manifest(block)) is None and block.exists():
                    reason = "is damaged: a file is missing, or has another size; `medsyn verify CAMPAIGN_DIR --repair`"
                    raise InputError(block, f"{reason} makes it again")
                for record in manifest or ():
                    if record["file"] is not None:
                        yield _of_record(block, record, modality)
                if manifest is not None and config.generation.keep_rejected:
                    folder = rejected_directory(block)
                    yield from (_of_record(folder, record, modality) for record in read_rejected(folder))


def _of_record(folder: Path, record: dict[str, Any], modality: str) -> Source:
    file = stored_files(folder, record)["png"]
    return Source(
        file=file.path.absolute(),
        modality=modality,
        prompt=record["prompt"],
        is_generated=True,
        member=file.name if file.in_archive else None,
        offset=file.offset,
        size=file.size if file.in_archive else None,
        sha256=file.sha256,
        facts=record,
    )


# --- a folder -------------------------------------------------------------------------------------------------------


def of_folder(folder: Path, modality: str | None = None) -> list[Source]:
    """The images of a folder, as `generate --prompt` leaves them, or any others.

    Args:
        folder: it, and the folders below it.
        modality: of images that do not say it themselves.

    Raises:
        InputError: there are none.
        InputProblems: the modality of some is not known.
    """
    if (folder / MANIFEST).is_file():
        records = [record for record in disk.read_jsonl(folder / MANIFEST) if record.get("file")]
        known = [record for record in records if canonical_modality(str(record.get("modality")))]
        return [
            _of_record(folder, record, record["modality"]) for record in known if (folder / record["file"]).is_file()
        ]
    files = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES) and path.is_file())
    if not files:
        raise InputError(folder, f"there is no image in it; files of {', '.join(IMAGE_SUFFIXES)} are looked for")
    found = [_of_image(path, modality) for path in files]
    unknown = [path for path, source in zip(files, found, strict=True) if source is None]
    if unknown:
        names = and_more([path.name for path in unknown], _NAMED)
        reason = f"{counted(len(unknown), 'image')} do not say their modality ({names}): give --modality"
        raise InputProblems([Problem(str(folder), reason)])
    return [source for source in found if source is not None]


def _of_image(path: Path, modality: str | None) -> Source | None:
    named, prompt = own_record(path)
    said = base_modality(named) if named else modality
    return Source(path.absolute(), said, prompt or "") if said else None


# --- a table --------------------------------------------------------------------------------------------------------


def of_table(path: Path, root: Path | None = None, is_generated: bool | None = None) -> list[Source]:
    """The images of a data set (`path`, `Text`, `modality`) or of ratings (`image_path`, `prompt`, `modality`).

    Args:
        path: the CSV file.
        root: what its files are relative to; its own folder unless given.
        is_generated: what the images are; each one's own mark decides unless given.

    Raises:
        InputError, InputProblems: the table cannot be used, or a row of it.
    """
    require_csv(path)
    check_text_file(path)
    with path.open(encoding="utf-8-sig") as stream:
        header = stream.readline().casefold()
    rows = _rated(path, root) if "image_path" in header else read_dataset(path, root).require(strict=True)
    unique = {(row.path, row.volume): row for row in reversed(rows)}
    ordered = sorted(unique.values(), key=lambda row: row.row)
    return [Source(row.path, row.modality, row.text, is_generated, row.volume) for row in ordered]


def _rated(path: Path, root: Path | None) -> list[ImageRow]:
    """The images of a table of ratings; what it says of them is not read."""
    folder, faults, rows = DataFolder(root or path.parent), Faults(str(path)), list[ImageRow]()
    for line, (written, name, prompt) in csv_records(faults, path, ("image_path", "modality", "prompt")):
        try:
            file = folder.find(written)
        except Refused as refused:
            faults.error(line, "image_path", f"{show(written)} {refused}")
            continue
        modality = check_modality(faults, line, "modality", name, prompt, MODALITIES)
        text = check_text(faults, line, "prompt", prompt, modality)
        if modality is not None and text is not None:
            rows.append(ImageRow(line, folder.name(file), file, text, modality, None))
    if faults.errors:
        raise InputProblems(faults.errors)
    if not rows:
        raise InputError(path, "there are no rows")
    return rows


def of_rows(rows: Sequence[ImageRow]) -> list[Source]:
    """The images of a data set that has been read, as real ones."""
    unique = {(row.path, row.volume): row for row in reversed(rows)}
    return [Source(row.path, row.modality, row.text, False, row.volume) for row in unique.values()]
