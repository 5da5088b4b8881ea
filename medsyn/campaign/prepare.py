"""Everything before the first task: check every input and write what the tasks read.

A prepared campaign's directory holds phantoms (if it is to draw them), `inputs/prompts.csv`, `config.yaml` with all
paths absolute and nothing left to look up, and, written last, `campaign.json`: what all results depend on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import medsyn
from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign import inputs, locks, records
from medsyn.campaign.inputs import CONFIGURATION, Checked, Progress
from medsyn.campaign.plan import READS, SCHEMA, reads_key, stage_fingerprints
from medsyn.campaign.records import Campaign, FileRecord
from medsyn.config import PHANTOMS, Config
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.stage import STAGES, CampaignDirectory

# What may change at any time: it changes no result, or (evaluation) only the last stage's, which is made again.
FREE = ("campaign.name", "cluster", "device.cpu_threads", "evaluation", "generation.blocks_per_shard")


def unchanged(config: Config) -> Campaign | None:
    """The campaign if it was prepared from just this configuration and these inputs: nothing is left to check."""
    resolved = inputs.resolve(config)
    directory = CampaignDirectory(resolved.campaign.path)
    facts = records.read_facts(directory)
    if facts is None or facts["config"] != resolved.model_dump() or facts["weights"] != inputs.weights_of(resolved):
        return None
    source = inputs.prompt_source(config)
    if (facts["prompt_source"] or {}).get("path") != (str(source) if source else None):
        return None
    files = [*facts["inputs"].values(), *([facts["prompt_source"]] if source else [])]
    if any(records.difference(FileRecord(**file), directory.root, hashes=True) for file in files):
        return None
    try:
        return records.open_campaign(directory.root)
    except InputError:  # a killed submit, or an edit by hand: prepare it again
        return None


def prepare(config: Config, progress: Progress | None = None) -> Campaign:
    """The campaign of a configuration, ready to run; checks and writes only what is not as it was before.

    Raises:
        InputProblems: everything that is wrong with the inputs, or the keys that changed what is already made.
        Busy: another process is at work on the campaign.
    """
    campaign = unchanged(config)
    if campaign is None:
        _refuse_changed_keys(inputs.resolve(config))  # before images are read, which takes a while
        checked = _require(inputs.check(config, progress))
        with locks.exclusive(CampaignDirectory(checked.config.campaign.path).ledger):
            campaign = _write(checked, progress)
    return campaign


def _write(checked: Checked, progress: Progress | None) -> Campaign:
    config, resolved = checked.given, checked.config
    directory = CampaignDirectory(resolved.campaign.path)
    _refuse_changed_keys(resolved)
    if config.data.table == PHANTOMS:
        _draw_phantoms(config, directory.root / "phantoms", progress)
        checked = _require(inputs.check(config))
    source = inputs.prompt_source(config)
    files = {
        "table": records.record_file(Path(resolved.data.table)),
        "ratings": records.record_file(Path(str(resolved.data.ratings_file))),
        "prompts": _record_text(Path(str(resolved.data.prompts)), checked.prompts),
    }
    contents = {name: record.sha256 for name, record in files.items()} | {"weights": inputs.weights_of(resolved)}
    if before := records.read_facts(directory):
        _refuse(_changed_inputs(before, contents), directory)
    disk.write_atomic(Path(str(resolved.data.prompts)), checked.prompts)
    disk.write_atomic(directory.config, configuration.save(resolved))
    disk.write_json(
        records.campaign_file(directory),
        {
            "schema": SCHEMA,
            "medsyn": medsyn.__version__,
            "fingerprints": stage_fingerprints(resolved, contents),
            "prompts": dict(checked.counts["prompts"]),
            "weights": contents["weights"],
            "inputs": {name: asdict(record) for name, record in files.items()},
            "prompt_source": asdict(records.record_file(source)) if source else None,
            "config": resolved.model_dump(),
        },
    )
    return records.open_campaign(directory.root)


def _draw_phantoms(config: Config, directory: Path, progress: Progress | None) -> None:
    from medsyn.data.phantoms import write_dataset  # needs numpy and the image libraries

    for left in directory.parent.glob(f".{directory.name}.tmp-*"):  # by a submit that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    wanted = config.data.phantoms
    tell = (lambda done, total: progress("drawing phantoms", done, total)) if progress else None
    write_dataset(
        directory, wanted.images_per_kind, wanted.prompts_per_kind, wanted.image_size, config.campaign.seed, tell
    )


def _require(checked: Checked) -> Checked:
    if checked.errors:
        raise InputProblems(checked.errors)
    return checked


def _record_text(path: Path, text: str) -> FileRecord:
    """The record of a file that will hold `text`."""
    content = text.encode()
    return FileRecord(str(path), len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class _Change:
    """A key whose value, or the file it names, is another than when the campaign was prepared."""

    key: str
    how: str
    stages: list[str]  # that read it


def _changed_keys(before: Mapping[str, Any], after: Config) -> list[_Change]:
    old, new = dict(configuration.flatten(before["config"])), dict(configuration.flatten(after.model_dump()))
    return [
        _Change(key, f"was {old.get(key)!r} and is now {value!r}", [stage for stage in STAGES if reads_key(stage, key)])
        for key, value in new.items()
        if old.get(key) != value and not any(key == free or key.startswith(free + ".") for free in FREE)
    ]


_INPUT_KEYS = {
    "table": "data.table",
    "ratings": "data.ratings_file",
    "prompts": "data.prompts",
    "weights": "model_paths.stable_diffusion",
}


def _changed_inputs(before: Mapping[str, Any], contents: Mapping[str, str]) -> list[_Change]:
    old = {name: record["sha256"] for name, record in before["inputs"].items()} | {"weights": before["weights"]}
    return [
        _Change(key, "has other content than before", [stage for stage in STAGES if name in READS[stage].inputs])
        for name, key in _INPUT_KEYS.items()
        if old[name] != contents[name]
    ]


def _refuse_changed_keys(resolved: Config) -> None:
    directory = CampaignDirectory(resolved.campaign.path)
    if before := records.read_facts(directory):
        _refuse(_changed_keys(before, resolved), directory)


def _refuse(changes: Iterable[_Change], directory: CampaignDirectory) -> None:
    """Raise InputProblems naming every change that something already made depends on."""
    problems = []
    for change in changes:
        made = [stage for stage in change.stages if stage != "evaluate" and _has_made(directory, stage)]
        if change.key.startswith("data.phantoms.") and (directory.root / "phantoms").is_dir():
            made.insert(0, "phantoms")
        if made:
            reason = f"{change.how}, but {', '.join(made)} of this campaign exists: change it back, or choose another "
            problems.append(
                Problem(CONFIGURATION, reason + f"campaign.name, or delete {directory.root}", key=change.key)
            )
    if problems:
        raise InputProblems(problems)


def _has_made(directory: CampaignDirectory, stage: str) -> bool:
    """Whether a task of the stage has left anything."""
    work = directory.work(stage, "any").parent
    return work.is_dir() and any(work.iterdir())
