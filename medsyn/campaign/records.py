"""A campaign's records on disk: what is done, what failed, who tried when. The disk is the truth.

A task is done if and only if its marker is there, the marker's fingerprint is the one that the task has today, and
the outputs that the marker lists are there in the listed sizes. Everything else is a hint.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PositiveInt

import medsyn
from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign import attempts, summary
from medsyn.campaign.plan import READS, SCHEMA, Key, Plan, PlannedTask, build, stage_fingerprints
from medsyn.config import Config
from medsyn.data import prompt_lists
from medsyn.errors import InputError
from medsyn.generation.shard import ATTEMPTS, MANIFEST, TIMING, read_manifest
from medsyn.generation.shard_tables import ATTEMPTS_TABLE, MANIFEST_TABLE
from medsyn.stage import STAGES, CampaignDirectory

LATENCY_SECONDS = 30.0  # how late a shared file system may show what another node has renamed into place
HASH_LIMIT = 256 << 20  # bytes; a larger file's hash is recorded, but only its size is checked again


@dataclass(frozen=True)
class FileRecord:
    """A file as it was: absolute path, or relative to the campaign's directory."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Campaign:
    """A prepared campaign: where it is, its resolved configuration, its plan, and what its results depend on."""

    directory: CampaignDirectory
    config: Config
    plan: Plan
    fingerprints: Mapping[str, str]  # of each stage
    inputs: Mapping[str, FileRecord]  # table, ratings, prompts
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of images, ratings, …, by modality


class _Inputs(BaseModel):
    table: FileRecord
    ratings: FileRecord
    prompts: FileRecord


class _Facts(BaseModel):
    """What must be in a prepared campaign's record."""

    fingerprints: dict[str, str]
    prompts: dict[str, list[tuple[int, int]]]  # by modality, of each run: prompts without an `n`, images of the others
    counts: dict[str, dict[str, int]]
    blocks_per_shard: dict[str, PositiveInt]
    weights: str
    inputs: _Inputs
    prompt_source: FileRecord | None
    config: dict[str, Any]


def write_facts(directory: CampaignDirectory, facts: Mapping[str, Any]) -> None:
    """Write down what the campaign was prepared from."""
    disk.write_json(directory.facts, {**_version(), **facts})


def require_own(directory: CampaignDirectory) -> None:
    """Raise InputError if the campaign is another user's: whose jobs are in the queue, only its owner can ask Slurm."""
    try:
        owner = directory.facts.stat().st_uid
    except OSError:
        return
    if owner != os.getuid():
        reason = f"this campaign belongs to {user_name(owner)}, who alone can submit, resume or cancel it"
        raise InputError(directory.root, reason, key="campaign.dir")


def user_name(number: int) -> str:
    """The login name of a user id, or the id where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def claim(directory: CampaignDirectory) -> None:
    """Mark a new directory as a campaign's before anything else is in it, so that a killed submit can be made again."""
    if not directory.facts.exists():
        write_facts(directory, {})


def _version() -> dict[str, Any]:
    return {"schema": SCHEMA, "medsyn": medsyn.__version__}


def open_campaign(root: Path) -> Campaign:
    """Read a prepared campaign; raises InputError if it is none, or if its configuration or record was edited."""
    directory = CampaignDirectory(root.absolute())
    facts = read_facts(directory)
    if facts is None:
        raise InputError(root, "this is not a campaign's directory: `launch.py submit CONFIG` makes one")
    config = configuration.load(directory.config, environment={})
    inputs: Mapping[str, FileRecord] = {name: FileRecord(**one) for name, one in facts["inputs"].items()}
    if config.campaign.path != directory.root:
        config, inputs = _moved(config, inputs, directory.root)
    contents = {name: record.sha256 for name, record in inputs.items()} | {"weights": facts["weights"]}
    fingerprints = stage_fingerprints(config, contents)
    if fingerprints != facts["fingerprints"]:
        names = f"{directory.config.name} or {directory.facts.name}"
        reason = f"{names} was edited by hand or is damaged: change your own configuration and submit that"
        raise InputError(directory.root, reason)
    img_num = config.generation.img_num
    images = {name: [plain * img_num + asked for plain, asked in runs] for name, runs in facts["prompts"].items()}
    plan = build(config, images, facts["blocks_per_shard"])
    return Campaign(directory, config, plan, fingerprints, inputs, facts["counts"])


def _moved(config: Config, inputs: Mapping[str, FileRecord], root: Path) -> tuple[Config, Mapping[str, FileRecord]]:
    """The configuration and the inputs of a campaign whose directory was moved or copied to `root`.

    Every path into the directory it was prepared in becomes one into `root`; no fingerprint depends on a path.
    """
    old = config.campaign.path

    def move(path: Any) -> Any:
        inside = isinstance(path, str) and Path(path).is_absolute() and Path(path).is_relative_to(old)
        return str(root / Path(path).relative_to(old)) if inside else path

    tree = config.model_dump()
    for section, keys in (
        ("campaign", ["dir"]),
        ("data", ["table", "root", "ratings_file", "prompts"]),
        ("model_paths", tree["model_paths"]),
    ):
        tree[section] |= {key: move(tree[section][key]) for key in keys}
    moved = {name: replace(record, path=move(record.path)) for name, record in inputs.items()}
    return Config.model_validate(tree), moved


def read_facts(directory: CampaignDirectory) -> dict[str, Any] | None:
    """What `prepare` wrote down about the campaign, or None if it has not been prepared.

    Raises:
        InputError: the record is damaged, of another format, or not medsyn's.
    """
    path = directory.facts
    try:
        if not path.is_file():
            return None
        facts: dict[str, Any] = disk.read_json(path)
        if facts["schema"] != SCHEMA:
            reason = f"medsyn {facts['medsyn']} made this campaign in another format: choose another campaign.name"
            raise InputError(path, reason)
        if facts.keys() == _version().keys():  # claimed, and killed before it was ready
            return None
        _Facts.model_validate(facts)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "damaged, or not medsyn's: choose another campaign.name or campaign.dir"
        raise InputError(path, reason) from None
    return facts


def record_file(path: Path, base: Path | None = None) -> FileRecord:
    """What is in `path` now; named relative to `base` if that is given."""
    return FileRecord(str(path.relative_to(base) if base else path), path.stat().st_size, disk.sha256_file(path))


def difference(record: FileRecord, base: Path, hashes: bool) -> str | None:
    """How the file differs from its record, or None: its size always, its content if `hashes` and not too large."""
    path = base / record.path
    if not path.is_file():
        return f"{path} is not there"
    size = path.stat().st_size
    if size != record.size:
        return f"{path} has {size} bytes and had {record.size}"
    if hashes and size <= HASH_LIMIT and disk.sha256_file(path) != record.sha256:
        return f"{path} has other content than when it was recorded"
    if path.name == MANIFEST and read_manifest(path.parent) is None:
        return f"{path.parent} has lost an image"
    if path.name == prompt_lists.INDEX:
        large = sum(file.stat().st_size for file in path.parent.iterdir()) > HASH_LIMIT
        return prompt_lists.damage(path.parent, hashes and not large)
    return None


def task_fingerprint(campaign: Campaign, planned: PlannedTask, done: Collection[Key] | None = None) -> str:
    """What the task's marker must carry to count; `done` are the tasks before it that are, if that is known."""
    task = planned.task
    facts: dict[str, Any] = {
        "stage": campaign.fingerprints[task.stage],
        "modality": task.modality,
        "blocks": task.blocks,
    }
    if task.stage == "evaluate":  # its result says what was there to evaluate, so more of it is another result
        done = done_facts(campaign, but="evaluate") if done is None else done
        facts["evaluated"] = sorted(key for key in planned.after if key in done)
    return disk.fingerprint(facts)


def done_marker(campaign: Campaign, planned: PlannedTask, done: Collection[Key] | None = None) -> dict[str, Any] | None:
    """The task's marker if it is there, readable and of today's fingerprint; `done` as for `task_fingerprint`."""
    try:
        marker: dict[str, Any] = disk.read_json(campaign.directory.done(*planned.key))
        return marker if marker["fingerprint"] == task_fingerprint(campaign, planned, done) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def done_facts(campaign: Campaign, but: str | None = None) -> dict[Key, Mapping[str, Any]]:
    """What the markers of all done tasks say, by one listing and one summary a stage; outputs are not looked at.

    Args:
        campaign: the prepared campaign.
        but: a stage to leave out.
    """
    found: dict[Key, Mapping[str, Any]] = {}
    for stage, tasks in campaign.plan.by_stage.items():
        if stage == but:
            continue
        there = summary.names(campaign.directory.done(stage, "any").parent)
        lines = summary.read(campaign.directory, stage) if there else {}
        for planned in tasks:
            if (name := planned.task.name) not in there:
                continue
            line = lines.get(name)
            if line is not None and line.get("fingerprint") == task_fingerprint(campaign, planned, found):
                found[planned.key] = line
            elif (marker := done_marker(campaign, planned, found)) is not None:
                found[planned.key] = marker
    return found


def why_not_done(campaign: Campaign, planned: PlannedTask, hashes: bool = False) -> str | None:
    """Why the task does not count as done, or None if it does."""
    marker = done_marker(campaign, planned)
    if marker is None:
        return "it has not been done"
    records = (FileRecord(**output) for output in marker["outputs"])
    return next((d for r in records if (d := difference(r, campaign.directory.root, hashes))), None)


def outputs(campaign: Campaign, planned: PlannedTask) -> Iterator[Path]:
    """The files that a task which has ended well leaves; of a block its manifest, which lists the images and hashes."""
    task, directory, config = planned.task, campaign.directory, campaign.config
    if task.blocks is not None:
        for _, manifest in _manifests(campaign, planned):
            yield from (manifest, manifest.with_name(ATTEMPTS))
        for mode in config.generation.modes:
            shard = directory.shard(mode, str(task.modality), task.blocks)
            yield from (shard / MANIFEST_TABLE, shard / ATTEMPTS_TABLE)
        return
    if task.stage == "evaluate":
        yield directory.report
    work = directory.work(*planned.key)
    passing = {"checkpoints", config.training.checkpoints.save_dir}
    for path in sorted(work.rglob("*")):
        inside = path.relative_to(work)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden and inside.parts[0] not in passing and path.name != TIMING:
            yield path


def _manifests(campaign: Campaign, planned: PlannedTask) -> Iterator[tuple[str, Path]]:
    """(mode, manifest) of every block that a generate task makes; nothing for any other task."""
    task = planned.task
    if task.blocks is not None and task.modality is not None:
        for mode in campaign.config.generation.modes:
            for number in range(*task.blocks):
                yield mode, campaign.directory.block(mode, task.modality, number) / MANIFEST


def write_done(campaign: Campaign, planned: PlannedTask, facts: Mapping[str, Any]) -> None:
    """Declare the task done; the last thing its worker writes. An old failure is forgotten.

    Raises:
        FileNotFoundError: the stage returned without having made what it is there for.
    """
    made = [record_file(path, campaign.directory.root) for path in outputs(campaign, planned)]
    if not made:
        raise FileNotFoundError(f"{planned.task.stage} {planned.task.name} ended without having made anything")
    directory, key, now = campaign.directory, planned.key, time.time()
    marker = {
        "fingerprint": task_fingerprint(campaign, planned),
        "time": now,
        **facts,
        "spent": attempts.read(directory.attempts(*key)).spent(now),  # seconds of all attempts
        "images": summary.count_images(_manifests(campaign, planned)),
        "outputs": [asdict(one) for one in made],
    }
    disk.write_json(directory.done(*key), marker)
    summary.append(directory, *key, marker)
    directory.failed(*key).unlink(missing_ok=True)


def check_inputs(campaign: Campaign, planned: PlannedTask) -> None:
    """Raise InputError if an input file or the result of a task this one needs is not what it was recorded to be."""
    root = campaign.directory.root
    for name in READS[planned.task.stage].inputs:
        record = campaign.inputs.get(name)
        if record and (reason := difference(record, root, hashes=True)):
            raise InputError(root / record.path, f"{reason}: the campaign was submitted with another {name} file")
    for key in planned.needs:
        if reason := why_not_done(campaign, campaign.plan.by_key[key], hashes=True):
            raise InputError(
                f"{planned.task.stage} {planned.task.name}",
                f"it needs {' '.join(key)}, but {reason}: run {' '.join(key)} first (`launch.py submit` does)",
            )


def progress(directory: CampaignDirectory, key: Key) -> dict[str, Any] | None:
    """The task's newest heartbeat."""
    try:
        beat: dict[str, Any] = disk.read_json(directory.beat(*key))
    except (OSError, ValueError):
        return None
    return beat


def start_attempt(directory: CampaignDirectory, key: Key) -> int:
    """Write down that the task is being tried, and by whom; return how many times it was tried, this one included."""
    path = directory.attempts(*key)
    number = 1 + sum(1 for line in disk.read_jsonl(path) if line["event"] == "start")
    disk.append_jsonl(path, _attempt("start", number, progress=progress(directory, key)))
    directory.beat(*key).unlink(missing_ok=True)  # from here on a heartbeat is this attempt's
    return number


def end_attempt(
    directory: CampaignDirectory, key: Key, number: int, exit_code: int, reason: str, asked: float | None = None
) -> None:
    """Write down how the attempt ended, and when it was asked to leave if it was."""
    facts = {"exit_code": exit_code, "reason": reason, "progress": progress(directory, key)}
    if asked is not None:
        facts["asked"] = asked
    disk.append_jsonl(directory.attempts(*key), _attempt("end", number, **facts))


def attempt_lines(directory: CampaignDirectory, key: Key) -> list[dict[str, Any]]:
    """Every start and end of the task on record, oldest first."""
    return list(disk.read_jsonl(directory.attempts(*key)))


def _attempt(event: str, number: int, **facts: Any) -> dict[str, Any]:
    who: dict[str, Any] = {"time": time.time(), "host": os.uname().nodename, "pid": os.getpid()}
    if job := slurm_job():
        who |= {"job": job, "node": os.environ.get("SLURMD_NODENAME", "")}
    return {"event": event, "attempt": number, **who, **facts}


def slurm_job() -> str | None:
    """Slurm's id of the job this process runs in: 123, or 123_4 for an element of an array; None outside of Slurm."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array else os.environ.get("SLURM_JOB_ID")


def write_failure(directory: CampaignDirectory, key: Key, failure: Mapping[str, Any]) -> None:
    """Write down why the task failed."""
    disk.write_json(directory.failed(*key), {"time": time.time(), "host": os.uname().nodename, **failure})


def read_failure(directory: CampaignDirectory, key: Key) -> dict[str, Any] | None:
    """Why the task failed when it was last tried, or None."""
    try:
        failure: dict[str, Any] = disk.read_json(directory.failed(*key))
    except (OSError, ValueError):
        return None
    return failure


def same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two failures are the same exception at the same progress; addresses and amounts in its text may vary."""

    def place(failure: Mapping[str, Any]) -> tuple[Any, ...]:
        message = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", str(failure.get("message")))
        return failure.get("error"), message, failure.get("step")

    return place(one) == place(other)


def done_keys(campaign: Campaign, tasks: Iterable[PlannedTask]) -> set[Key]:
    """Which of the tasks are done, their outputs' sizes checked."""
    marked = {stage: summary.names(campaign.directory.done(stage, "any").parent) for stage in STAGES}
    with_marker = (planned for planned in tasks if planned.task.name in marked[planned.task.stage])
    return {planned.key for planned in with_marker if why_not_done(campaign, planned) is None}
