"""The record that makes a directory a campaign (campaign.json): what it was prepared from, and reading it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PositiveInt

import medsyn
from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.tasks import SCHEMA, Plan, build, stage_fingerprints
from medsyn.config import Config
from medsyn.data.prompts import store
from medsyn.errors import InputError
from medsyn.generation.block_store import MANIFEST, read_manifest
from medsyn.stage import CampaignDirectory

LATENCY_SECONDS = 30.0  # how late a shared file system may show what another node has renamed into place
CampaignRecord = Mapping[str, Any]  # what campaign.json holds, its version aside
HASH_LIMIT = 256 << 20  # bytes; a larger file's hash is recorded, but only its size is checked again


@dataclass(frozen=True)
class FileRecord:
    """A file as it was: absolute path, or relative to the campaign's directory."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Campaign:
    """A prepared campaign: its directory, resolved configuration, plan, and what its results depend on."""

    directory: CampaignDirectory
    config: Config
    plan: Plan
    fingerprints: Mapping[str, str]  # of each stage
    inputs: Mapping[str, FileRecord]  # table, ratings, prompts, pairs if there are any
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of images, ratings, …, by modality


class _Inputs(BaseModel):
    table: FileRecord
    ratings: FileRecord
    prompts: FileRecord
    pairs: FileRecord | None = None


class _RecordSchema(BaseModel):
    """What must be in a prepared campaign's record."""

    fingerprints: dict[str, str]
    prompts: dict[str, list[tuple[int, int]]]  # by modality, of each run: prompts without an `n`, images of the others
    counts: dict[str, dict[str, int]]
    blocks_per_shard: dict[str, PositiveInt]
    weights: str
    inputs: _Inputs
    prompt_source: FileRecord | None
    config: dict[str, Any]


def write_record(directory: CampaignDirectory, facts: CampaignRecord) -> None:
    """Record what the campaign was prepared from."""
    disk.write_json(directory.campaign_file, {**_version(), **facts})


def claim(directory: CampaignDirectory) -> None:
    """Mark a new directory as a campaign's before anything else is in it, so that a killed submit can be repeated."""
    if not directory.campaign_file.exists():
        write_record(directory, {})


def _version() -> dict[str, Any]:
    return {"schema": SCHEMA, "medsyn": medsyn.__version__}


def open_campaign(root: str | Path) -> Campaign:
    """Read a prepared campaign; raises InputError if it is none, or if its configuration or record was edited."""
    directory = CampaignDirectory(Path(root).absolute())
    return open_recorded(directory, require_record(directory))


def require_record(directory: CampaignDirectory) -> CampaignRecord:
    """The record of a prepared campaign; raises InputError if the directory has none."""
    facts = read_record(directory)
    if facts is None:
        reason = "the preparation of this campaign was never finished: submit its configuration again"
        if not directory.campaign_file.exists():
            reason = "this is not a campaign's directory: `medsyn submit CONFIG` creates one"
        raise InputError(directory.root, reason)
    return facts


def open_recorded(directory: CampaignDirectory, facts: CampaignRecord, plan: Plan | None = None) -> Campaign:
    """The campaign of a record that has just been read or written; raises as `open_campaign` does.

    Args:
        directory: where it is.
        facts: what its record says.
        plan: its plan, where that has been built already.
    """
    config = configuration.load(directory.config, environment={})
    inputs = {name: FileRecord(**one) for name, one in facts["inputs"].items()}
    if (old := config.campaign.path) != directory.root:
        inputs = {name: replace(one, path=moved(one.path, old, directory.root)) for name, one in inputs.items()}
        config = _moved_configuration(config, directory.root)
    contents = {name: record.sha256 for name, record in inputs.items()} | {"weights": facts["weights"]}
    fingerprints = stage_fingerprints(config, contents)
    if fingerprints != facts["fingerprints"]:
        names = f"{directory.config.name} or {directory.campaign_file.name}"
        reason = f"{names} was edited by hand or is damaged: change your own configuration and submit that instead"
        raise InputError(directory.root, reason)
    return Campaign(directory, config, plan or plan_of(config, facts), fingerprints, inputs, facts["counts"])


def recorded(directory: CampaignDirectory, facts: CampaignRecord) -> Campaign:
    """The campaign as its record alone has it: no saved configuration is read, and no edit by hand is noticed."""
    config = configuration.validate(facts["config"], str(directory.campaign_file))
    inputs = {name: FileRecord(**one) for name, one in facts["inputs"].items()}
    return Campaign(directory, config, plan_of(config, facts), facts["fingerprints"], inputs, facts["counts"])


def plan_of(config: Config, facts: CampaignRecord) -> Plan:
    """The plan of a recorded campaign."""
    img_num = config.generation.img_num
    images = {name: [plain * img_num + asked for plain, asked in runs] for name, runs in facts["prompts"].items()}
    return build(config, images, facts["blocks_per_shard"])


def saved_configuration(directory: CampaignDirectory) -> tuple[Config, Path]:
    """The configuration that the campaign's tasks read, with paths as they are where the directory is now.

    Returns:
        It, and where the campaign was prepared. A link to that is no other place.
    """
    config = configuration.load(directory.config, environment={})
    old = config.campaign.path
    is_there = old == directory.root or (old.exists() and old.samefile(directory.root))
    return config if is_there else _moved_configuration(config, directory.root), old


def moved(path: Any, old: Path, root: Path) -> Any:
    """A path into the directory `old` as one into `root`, where the campaign is now; anything else unchanged."""
    inside = isinstance(path, str) and Path(path).is_absolute() and Path(path).is_relative_to(old)
    return str(root / Path(path).relative_to(old)) if inside else path


def _moved_configuration(config: Config, root: Path) -> Config:
    """The configuration of a campaign whose directory was moved or copied to `root`; no path is in a fingerprint."""
    tree, old = config.model_dump(), config.campaign.path
    for section, keys in (
        ("campaign", ["dir"]),
        ("data", ["table", "root", "ratings_file", "pairs_file", "prompts"]),
        ("model_paths", tree["model_paths"]),
    ):
        tree[section] |= {key: moved(tree[section][key], old, root) for key in keys}
    return Config.model_validate(tree)


def read_record(directory: CampaignDirectory) -> dict[str, Any] | None:
    """The record that `prepare` wrote, or None if the campaign has not been prepared.

    Raises:
        InputError: the record is damaged, in another format, or not medsyn's.
    """
    path = directory.campaign_file
    try:
        if not path.is_file():
            return None
        facts: dict[str, Any] = disk.read_json(path)
        if facts["schema"] != SCHEMA:
            reason = (
                f"medsyn {facts['medsyn']} wrote this campaign in another format: finish it with that one, or choose "
            )
            reason += "another campaign.name"
            raise InputError(path, reason)
        if facts.keys() == _version().keys():  # claimed, and killed before it was ready
            return None
        _RecordSchema.model_validate(facts)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "is damaged, or was not written by medsyn: choose another campaign.name or campaign.dir"
        raise InputError(path, reason) from None
    return facts


def record_file(path: Path, base: Path | None = None) -> FileRecord:
    """The record of the file `path` as it is now; its path is relative to `base` if that is given."""
    return FileRecord(str(path.relative_to(base) if base else path), path.stat().st_size, disk.sha256_file(path))


def difference(record: FileRecord, base: Path, hashes: bool) -> str | None:
    """How the file differs from its record, or None: its size always, its content if `hashes` and not too large."""
    path = base / record.path
    if not path.is_file():
        return f"{path} does not exist"
    size = path.stat().st_size
    if size != record.size:
        return f"{path} has {size} bytes instead of {record.size}"
    if hashes and size <= HASH_LIMIT and disk.sha256_file(path) != record.sha256:
        return f"{path} has changed since it was recorded"
    if path.name == MANIFEST and read_manifest(path.parent) is None:
        return f"{path.parent} is missing an image"
    if path.name == store.INDEX:
        large = sum(file.stat().st_size for file in path.parent.iterdir()) > HASH_LIMIT
        return store.damage(path.parent, hashes and not large)
    return None
