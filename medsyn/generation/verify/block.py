"""Check one block: are its three files whole, and does every record follow from the prompt list and its attempts?

The filter is a pure function of an item's candidates, so its decisions are repeated and compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medsyn import disk
from medsyn.generation.block_store import ATTEMPTS, MANIFEST, TIMING, Item, image_seed
from medsyn.generation.filter import Candidate, Rule, Trial
from medsyn.generation.verify.files import check_files
from medsyn.generation.verify.finding import Finding, name_item, unread
from medsyn.generation.write.png import describe
from medsyn.records import AttemptRecord, Condition, ImageRecord, fields, json_types
from medsyn.text import and_more, counted

ItemKey = tuple[str, int]  # prompt id, replicate

_SAID_OF_FILES = {one.name for one in fields(ImageRecord) if one.about.group == "file"}
_SHOWN = 3  # items or keys that one finding names


class Damaged(ValueError):
    """A file of a block that cannot be used; the message says why."""


@dataclass(frozen=True)
class Asked:
    """What a block should hold."""

    items: Sequence[Item]
    rule: Rule
    campaign_seed: int
    facts: Mapping[str, Any]  # what every record should contain
    shared: Sequence[str]  # further keys whose values all records of a block share
    settings: Mapping[str, Any]
    archive: bool
    dicom: bool


@dataclass(frozen=True)
class Content:
    """The content of a block's files, each of them whole by itself."""

    records: list[ImageRecord]
    attempts: list[AttemptRecord]
    timing: dict[str, Any]


def read_block(block: Path, asked: Asked, found: list[Finding]) -> Content | None:
    """The block's three files, or None if one cannot be used; what is wrong is added to `found`."""
    parts: dict[str, Any] = {}
    for name, read in ((MANIFEST, _read_manifest), (ATTEMPTS, _read_attempts), (TIMING, _read_timing)):
        try:
            parts[name] = read(block / name, asked)
        except OSError as error:
            found.append(Finding(block / name, unread(error), block))
        except Damaged as error:
            found.append(Finding(block / name, f"is damaged: {error}", block))
    return Content(parts[MANIFEST], parts[ATTEMPTS], parts[TIMING]) if len(parts) == 3 else None


def _read_manifest(path: Path, asked: Asked) -> list[ImageRecord]:
    conditions: set[Condition] = {"filtered"} if asked.rule.quality_threshold is not None else set()
    conditions |= {"archive"} if asked.archive else set()
    types, with_dicom = json_types(ImageRecord, conditions), json_types(ImageRecord, conditions | {"dicom"})
    records = _read_lines(path)
    for number, record in enumerate(records, 1):
        _require(record, number, types)
        has_image = record["file"] is not None
        if has_image and None in (record["bytes"], record["sha256"], record["width"], record["height"]):
            raise Damaged(f"line {number} names a file without its size and hash")
        if has_image and asked.archive and None in (record["archive"], record["offset"]):
            raise Damaged(f"line {number} lacks the position of its image in the archive")
        if has_image and asked.dicom:
            _require(record, number, with_dicom)
        for key in ("file", "archive", "dicom"):
            name = record.get(key)
            if name is not None and (not isinstance(name, str) or "/" in name or name in ("", ".", "..")):
                raise Damaged(f"line {number} names a file outside its block ({key})")
        if any(record.get(key) is not None and record[key] < 0 for key in ("bytes", "offset", "dicom_offset")):
            raise Damaged(f"line {number} has a negative size or offset")
    return cast(list[ImageRecord], records)


def _read_attempts(path: Path, asked: Asked) -> list[AttemptRecord]:
    types, attempts = json_types(AttemptRecord), _read_lines(path)
    for number, attempt in enumerate(attempts, 1):
        _require(attempt, number, types)
    return cast(list[AttemptRecord], attempts)


def _read_timing(path: Path, asked: Asked) -> dict[str, Any]:
    timing = _parse(disk.read_own_file(path))
    if not isinstance(timing, dict):
        raise Damaged("is not a JSON object")
    seconds, devices = timing.get("seconds"), timing.get("devices")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
        raise Damaged("'seconds' is not a duration")
    if not isinstance(devices, list) or not all(isinstance(one, (str, type(None))) for one in devices):
        raise Damaged("'devices' is not a list of names")
    if len(devices) != len(asked.items):
        raise Damaged(f"it names the devices of {counted(len(devices), 'image')}, not {len(asked.items)}")
    return timing


def _read_lines(path: Path) -> list[dict[str, Any]]:
    *lines, rest = disk.read_own_file(path).split(b"\n")
    if rest or not lines:
        raise Damaged("its last line is truncated" if rest else "it is empty")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = _parse(line)
        except Damaged as error:
            raise Damaged(f"line {number} {error}") from None
        if not isinstance(record, dict):
            raise Damaged(f"line {number} is not a JSON object")
        records.append(record)
    return records


def _parse(content: bytes) -> Any:
    try:
        return disk.from_json(content)
    except ValueError:
        raise Damaged("is not JSON") from None


def _require(record: Mapping[str, Any], number: int, types: Mapping[str, tuple[type, ...]]) -> None:
    for key, allowed in types.items():
        if key not in record:
            raise Damaged(f"line {number} lacks {key!r}")
        value = record[key]
        if not isinstance(value, allowed) or (isinstance(value, bool) and int in allowed):
            raise Damaged(f"line {number}: {key!r} is {json.dumps(value)[:40]}")


def check_block(block: Path, asked: Asked, content: Content) -> Iterator[Finding]:
    """Everything wrong with a block whose three files can be read."""
    trials, faults = _replay(asked, content.attempts)
    for reason in faults:
        yield Finding(block / ATTEMPTS, reason, block)
    for reason in _wrong_items(asked, content.records):
        yield Finding(block / MANIFEST, reason, block)
    yield from _check_records(block, asked, content.records, trials)
    yield from check_files(block, content.records, asked.items, archive=asked.archive)


def _replay(asked: Asked, attempts: Sequence[AttemptRecord]) -> tuple[dict[ItemKey, Trial], list[str]]:
    """Every item's trial, rebuilt from its recorded attempts, and what is wrong with those."""
    by_item: dict[ItemKey, list[AttemptRecord]] = {}
    for attempt in attempts:
        by_item.setdefault((attempt["id"], attempt["replicate"]), []).append(attempt)
    trials, faults, expected = {}, [], []
    for item in asked.items:
        key = item.prompt_id, item.replicate
        its = by_item.pop(key, [])
        trial, reason = _try_again(asked, item, its)
        if reason is not None:
            faults.append(f"{name_item(*key)} {reason}")
        else:
            trials[key] = trial
        expected += its
    faults += [f"{name_item(*key)} was not requested" for key in by_item]
    if not faults and expected != list(attempts):
        faults.append("its lines are in a different order from the images")
    return trials, faults


def _try_again(asked: Asked, item: Item, attempts: Sequence[AttemptRecord]) -> tuple[Trial, str | None]:
    """An item's trial, and what is wrong with its attempts."""
    trial, rule = Trial(asked.rule), asked.rule
    numbers = [attempt["attempt"] for attempt in attempts]
    if numbers != list(range(len(numbers))):
        lost = sorted(set(range(max(numbers) + 1 if max(numbers) < 10**6 else 0)) - set(numbers))
        return trial, f"has attempts {and_more(numbers, _SHOWN)}" + (
            f", but not {and_more(lost, _SHOWN)}" if lost else ""
        )
    if len(numbers) > rule.max_attempts:
        return trial, f"has {counted(len(numbers), 'attempt')}, more than the {rule.max_attempts} allowed"
    for attempt in attempts:
        said: Mapping[str, Any] = attempt
        trial.add(Candidate(**{one.name: said[one.name] for one in dataclasses.fields(Candidate)}))
    if not trial.settled:
        return trial, f"has {counted(len(numbers), 'attempt')}, too few to settle it: some are missing"
    expected = [{"id": item.prompt_id, "replicate": item.replicate, **record} for record in trial.records()]
    for line, attempt in zip(expected, attempts, strict=True):
        if differing := differing_keys(line, attempt):
            return trial, f"attempt {attempt['attempt']}, was judged differently: {and_more(differing, _SHOWN)}"
        if attempt["seed"] != image_seed(asked.campaign_seed, item, attempt["attempt"]):
            return trial, f"attempt {attempt['attempt']}, has a seed that does not follow from its number"
    return trial, None


def _wrong_items(asked: Asked, records: Sequence[ImageRecord]) -> Iterator[str]:
    """Missing, duplicate and unexpected items."""
    wanted = [(item.prompt_id, item.replicate) for item in asked.items]
    found = [(record["id"], record["replicate"]) for record in records]
    if wanted == found:
        return
    counts = Counter(found)
    for key in wanted:
        if key not in counts:
            yield f"{name_item(*key)} is missing"
    for key, count in counts.items():
        if count > 1:
            yield f"{name_item(*key)} is listed {count} times"
        if key not in set(wanted):
            yield f"{name_item(*key)} was not requested"
    if sorted(wanted) == sorted(found):
        yield "its lines are in a different order from the prompts"


def _check_records(
    block: Path, asked: Asked, records: Sequence[ImageRecord], trials: Mapping[ItemKey, Trial]
) -> Iterator[Finding]:
    """Whether each record follows from the item, its attempts and what all images share."""
    items = {(item.prompt_id, item.replicate): item for item in asked.items}
    facts = {**asked.facts, **{key: records[0].get(key) for key in asked.shared}}
    for record in records:
        key = record["id"], record["replicate"]
        item, trial = items.get(key), trials.get(key)
        if item is None or trial is None:
            continue
        expected = describe(item, trial, facts, asked.settings)
        # the keys about the file are compared with the file itself
        said = {key: value for key, value in record.items() if key in expected or key not in _SAID_OF_FILES}
        if differing := differing_keys(expected, said):
            what = f"{name_item(*key)} is recorded with a different {and_more(differing, _SHOWN)} from what made it"
            yield Finding(block / MANIFEST, what, block)
        if (trial.winner is None) != (record["file"] is None):
            has = "no image" if record["file"] is None else "an image"
            yield Finding(block / MANIFEST, f"{name_item(*key)} has {has}, but its attempts say otherwise", block)


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two records differ; true and 1 are different."""
    if one == other and list(map(type, one.values())) == [type(other[key]) for key in one]:
        return []
    missing = object()
    return [
        key
        for key in dict.fromkeys((*one, *other))
        if (one.get(key, missing), type(one.get(key))) != (other.get(key, missing), type(other.get(key)))
    ]
