"""Done markers: whether a task is done, and which files must exist for it to count.

A task is done if and only if its marker exists, the marker's fingerprint is the task's current one, and the outputs
that the marker lists exist with the listed sizes. Everything else is a hint.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medsyn import disk, efficiency, own_ratings, time_use
from medsyn.campaign.state import attempts, done_index, gate
from medsyn.campaign.state.campaign_file import Campaign, FileRecord, difference, record_file
from medsyn.campaign.tasks import READS, Key, PlannedTask
from medsyn.errors import InputError
from medsyn.generation.block_store import ATTEMPTS, MANIFEST, TIMING
from medsyn.generation.evidence import require_evidence
from medsyn.generation.write.parquet import ATTEMPTS_TABLE, MANIFEST_TABLE
from medsyn.generation.write.provenance import Sources
from medsyn.stage import KEPT, REPORTS, STAGES


def task_fingerprint(campaign: Campaign, planned: PlannedTask, done: Collection[Key] | None = None) -> str:
    """The fingerprint that the task's marker must have; `done` are the done tasks before it, if they are known."""
    task = planned.task
    facts: dict[str, Any] = {
        "stage": campaign.fingerprints[task.stage],
        "modality": task.modality,
        "blocks": task.blocks,
    }
    if task.stage == "evaluate":  # its result says what was there to evaluate, so more of it is another result
        done = done_facts(campaign, but="evaluate") if done is None else done
        facts["evaluated"] = sorted(key for key in planned.after if key in done)
        if ratings := own_ratings.current(campaign.directory):
            facts["ratings"] = ratings
    return disk.fingerprint(facts)


def done_marker(campaign: Campaign, planned: PlannedTask, done: Collection[Key] | None = None) -> dict[str, Any] | None:
    """The task's marker if it exists, is readable and has the current fingerprint; `done`: see `task_fingerprint`."""
    try:
        marker: dict[str, Any] = disk.read_json(campaign.directory.done(*planned.key))
        return marker if marker["fingerprint"] == task_fingerprint(campaign, planned, done) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def done_facts(campaign: Campaign, but: str | None = None) -> dict[Key, Mapping[str, Any]]:
    """The markers of all done tasks, from one listing and one summary per stage; outputs are not checked.

    Args:
        campaign: the prepared campaign.
        but: a stage to leave out.
    """
    found: dict[Key, Mapping[str, Any]] = {}
    for stage, tasks in campaign.plan.by_stage.items():
        if stage == but:
            continue
        there = done_index.names(campaign.directory.done(stage, "any").parent)
        lines = done_index.read(campaign.directory, stage) if there else {}
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
        return "it is not done"
    records = (FileRecord(**output) for output in marker["outputs"])
    return next((d for r in records if (d := difference(r, campaign.directory.root, hashes))), None)


def outputs(campaign: Campaign, planned: PlannedTask) -> Iterator[Path]:
    """The files that a successful task leaves; of a block its manifest, which lists the images and hashes."""
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
    passing = {"checkpoints", config.training.checkpoints.save_dir, *REPORTS}
    for path in sorted(work.rglob("*")):
        inside = path.relative_to(work)
        hidden = any(part.startswith(".") for part in inside.parts)
        needed = inside.parts[0] not in passing and not inside.parts[0].startswith(KEPT)
        if path.is_file() and not hidden and needed and path.name != TIMING:
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
        FileNotFoundError: the stage returned without any output.
    """
    made = [record_file(path, campaign.directory.root) for path in outputs(campaign, planned)]
    if not made:
        raise FileNotFoundError(f"{planned.task.stage} {planned.task.name} ended without any output")
    directory, key, now = campaign.directory, planned.key, time.time()
    lines, account = attempts.attempt_lines(directory, key), time_use.current()
    end = {"event": "end", "time": now, "reason": "done", "use": account.as_dict() if account else {}}
    marker = {
        "fingerprint": task_fingerprint(campaign, planned),
        "time": now,
        **facts,
        "spent": attempts.summarize(lines).spent(now),  # seconds of all attempts
        "use": efficiency.summarize([*lines, end]),
        "images": done_index.count_images(_manifests(campaign, planned)),
        "outputs": [asdict(one) for one in made],
    }
    disk.write_json(directory.done(*key), marker)
    done_index.append(directory, *key, marker)
    directory.failed(*key).unlink(missing_ok=True)


def ready_since(campaign: Campaign, planned: PlannedTask) -> float | None:
    """When the last thing that the task waits for was done, as far as that is known; None if it waits for nothing."""
    needed = [campaign.directory.done(*key) for key in planned.needs]
    needed += [campaign.directory.done(stage, "any").parent for stage in {key[0] for key in planned.after}]
    times = []
    for path in needed:
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=None)


def check_inputs(campaign: Campaign, planned: PlannedTask) -> None:
    """Raise InputError if an input file, or the result of a task this one needs, differs from its record.

    So it does if the task waits for ratings that are not there, or would let a Selector choose that has not earned it.
    """
    gate.require_open(campaign, planned.key)
    if reason := why_refused(campaign, planned):
        raise InputError(" ".join(planned.key), reason)
    root = campaign.directory.root
    for name in READS[planned.task.stage].inputs:
        record = campaign.inputs.get(name)
        if record and (reason := difference(record, root, hashes=True)):
            raise InputError(root / record.path, f"{reason}: the campaign was submitted with another {name} file")
    for key in planned.needs:
        if reason := why_not_done(campaign, campaign.plan.by_key[key], hashes=True):
            raise InputError(
                f"{planned.task.stage} {planned.task.name}",
                f"it needs {' '.join(key)}, but {reason}: run {' '.join(key)} first (`medsyn submit` does)",
            )


def why_refused(campaign: Campaign, planned: PlannedTask) -> str | None:
    """Why a task's Selector must not choose its images; None where it may, or is not there, or there is no task's."""
    config, modality = campaign.config, planned.task.modality
    if planned.task.stage != "generate" or modality is None or not config.generation.filters:
        return None
    try:
        selector, _ = Sources(config, modality, campaign.directory).scorers()
    except InputError:  # told with what else is missing
        return None
    try:
        require_evidence(config, selector.parent, modality)
    except InputError as error:
        return str(error)
    return None


def done_keys(campaign: Campaign, tasks: Iterable[PlannedTask]) -> set[Key]:
    """Which of the tasks are done, their outputs' sizes checked."""
    marked = {stage: done_index.names(campaign.directory.done(stage, "any").parent) for stage in STAGES}
    with_marker = (planned for planned in tasks if planned.task.name in marked[planned.task.stage])
    return {planned.key for planned in with_marker if why_not_done(campaign, planned) is None}
